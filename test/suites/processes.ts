// Real processes: they start, reload and stop, on a machine of files, signals and full disks.
import '../promises/host.test.ts'
import '../promises/reload-load.test.ts'
import '../promises/reload-signal.test.ts'
import '../promises/shutdown.test.ts'
import '../promises/start.test.ts'
