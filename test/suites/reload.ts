// Files that change while the gateway runs.
import '../reload.test.ts'
