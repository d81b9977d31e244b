// What those who run it see.
import '../operations-server.test.ts'
import '../acme.test.ts'
import '../audit.test.ts'
import '../expiry.test.ts'
import '../logger.test.ts'
import '../metrics.test.ts'
import '../plain-http.test.ts'
