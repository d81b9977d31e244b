// Handshakes and certificates, also those that change while the gateway runs.
import '../issue.test.ts'
import '../connections.test.ts'
import '../handshakes.test.ts'
import '../trust.test.ts'
import '../reload.test.ts'
import '../promises/reload-revocation.test.ts'
