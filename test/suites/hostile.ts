// By itself: it measures memory, and its tests run side by side.
import '../hostile-clients.test.ts'
