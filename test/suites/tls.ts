// Handshakes and certificates.
import '../issue.test.ts'
import '../connections.test.ts'
import '../handshakes.test.ts'
import '../trust.test.ts'
