// Real processes: they start, reload and stop.
import '../promises/reload-load.test.ts'
import '../promises/reload-signal.test.ts'
import '../promises/shutdown.test.ts'
import '../promises/start.test.ts'
