// Peers that mean harm, on the wire.
import '../promises/attacks-http.test.ts'
import '../promises/attacks-tls.test.ts'
import '../promises/hostile-clients.test.ts'
import '../promises/pipelining.test.ts'
import '../promises/smuggling.test.ts'
import '../promises/tls-versions.test.ts'
