import PostalMime from 'postal-mime'
import t from 'tap'
import { MESSAGE, startGateway } from './support/gateway.ts'

t.test('a message is handed to the relay, and 200 carries its reply', async (t) => {
  const { post, relay } = await startGateway(t)
  const answer = await post({ ...MESSAGE, from: 'Billing <billing@corp.example>', cc: ['b@corp.example'], bcc: 'c@corp.example' })
  t.equal(answer.status, 200, answer.text)
  t.match(answer.json, { status: 'accepted', accepted: ['user@corp.example', 'b@corp.example', 'c@corp.example'], rejected: [], smtp: { code: 250, response: '250 2.0.0 Ok: queued as 1' } })
  t.equal(answer.json['id'], answer.headers['x-request-id'])
  const [arrived] = relay.messages
  t.equal(arrived?.from, 'billing@corp.example')
  t.same(arrived?.to, ['user@corp.example', 'b@corp.example', 'c@corp.example'])
  t.equal(arrived?.secure, true)
  const mail = await PostalMime.parse(arrived?.raw ?? '')
  t.equal(mail.subject, 'Hello')
  t.match(mail.from, { address: 'billing@corp.example', name: 'Billing' })
  t.equal(mail.text?.trim(), 'Hi.')
  t.notMatch(arrived?.raw.toString(), /c@corp\.example/, 'bcc stays out of the message')
})
