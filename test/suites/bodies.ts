// Bodies that are passed on as they come, and what of them a relay has where it fails.
import '../promises/outcome-large.test.ts'
import '../promises/streaming-outcomes.test.ts'
import '../promises/streaming.test.ts'
