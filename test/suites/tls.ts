// Handshakes and certificates.
import '../attacks-tls.test.ts'
import '../certificate-table.test.ts'
import '../certificates.test.ts'
import '../connections.test.ts'
import '../handshakes.test.ts'
import '../tlslab.test.ts'
import '../trust.test.ts'
