// The way to the SMTP server.
import '../failover.test.ts'
import '../lanes.test.ts'
import '../outcome.test.ts'
import '../relay.test.ts'
