// From the caller's words to the octets on the wire.
import '../fidelity.test.ts'
import '../message.test.ts'
import '../smuggling.test.ts'
