// From the caller's words to the octets on the wire.
import '../compose.test.ts'
