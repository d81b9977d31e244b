// What takes its time: large outcomes, and revocations on open connections.
import '../promises/outcome-large.test.ts'
import '../promises/reload-revocation.test.ts'
