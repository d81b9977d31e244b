// What arrives, and what readers and relays make of it.
import '../promises/everyday-mail.test.ts'
import '../promises/failover.test.ts'
import '../promises/fidelity.test.ts'
import '../promises/forwarded-as-strict.test.ts'
import '../promises/readings.test.ts'
