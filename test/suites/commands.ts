// The commands, and what newcomers meet first.
import '../cli-cert.test.ts'
import '../cli-client.test.ts'
import '../cli-check.test.ts'
import '../cli-fingerprint.test.ts'
import '../cli-dev.test.ts'
import '../cli-inbox.test.ts'
import '../docs.test.ts'
