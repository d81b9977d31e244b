// Bodies passed on as they come, to relays that fail.
import '../streaming-outcomes.test.ts'
