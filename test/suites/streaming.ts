// By itself: it measures memory.
import '../streaming.test.ts'
