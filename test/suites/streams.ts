// Bodies that are passed on as they come.
import '../promises/streaming-outcomes.test.ts'
import '../promises/streaming.test.ts'
