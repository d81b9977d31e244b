import t from 'tap'
import { startGateway } from './support/gateway.ts'

t.test('a path or method that is not served is told as such, whatever body comes with it', async (t) => {
  const { request } = await startGateway(t)
  const types = ['application/json', 'text/plain', 'message/rfc822', 'multipart/form-data; boundary=x']
  for (const type of types) {
    const headers = { 'content-type': type }
    t.match(
      await request({ method: 'PUT', path: '/v1/messages', headers, body: '{}' }),
      { status: 405, headers: { allow: /POST/ }, json: { code: 'method_not_allowed', outcome: 'not_sent' } },
      `PUT ${type}`,
    )
    t.match(
      await request({ method: 'POST', path: '/v1/whoami', headers, body: '{}' }),
      { status: 405, headers: { allow: 'GET' } },
      `POST ${type}`,
    )
    t.match(
      await request({ method: 'POST', path: '/v1/nothing', headers, body: '{}' }),
      { status: 404, json: { code: 'not_found' } },
      `404 ${type}`,
    )
  }
  for (const method of ['DELETE', 'PATCH', 'OPTIONS'])
    t.equal((await request({ method, path: '/v1/messages' })).status, 405, method)
  t.equal((await request({ method: 'HEAD', path: '/v1/messages' })).status, 405, 'HEAD')
})
