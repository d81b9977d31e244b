// By itself: several messages of 10 MB at a time are in memory.
import '../outcome-large.test.ts'
