// The commands.
import '../cert-command.test.ts'
import '../client-command.test.ts'
import '../check-command.test.ts'
import '../fingerprint-command.test.ts'
