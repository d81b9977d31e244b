// The way to the SMTP server.
import '../outcome.test.ts'
import '../relay.test.ts'
import '../grant.test.ts'
import '../line.test.ts'
import '../dot-stuffing.test.ts'
import '../sessions.test.ts'
import '../reaching-relays.test.ts'
