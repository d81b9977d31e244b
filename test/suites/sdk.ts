// What apps use: the client, the transport for nodemailer, sendmail.
import '../sdk-client.test.ts'
import '../cli-sendmail.test.ts'
import '../sdk-nodemailer.test.ts'
