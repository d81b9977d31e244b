// Files that change while the gateway runs.
import '../reload.test.ts'
import '../promises/outcome-large.test.ts'
import '../promises/reload-revocation.test.ts'
