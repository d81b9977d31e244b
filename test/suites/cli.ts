// The commands.
import '../cli-cert.test.ts'
import '../cli-client.test.ts'
import '../cli-check.test.ts'
import '../cli-fingerprint.test.ts'
