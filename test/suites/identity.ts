// Who a caller is, and what it may do.
import '../allowances.test.ts'
import '../forwarded.test.ts'
import '../idempotency.test.ts'
import '../names.test.ts'
import '../tokens.test.ts'
