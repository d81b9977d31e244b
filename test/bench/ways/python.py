# Python's requests: a connection for each message ("new"), or a session that keeps it ("kept").
import json, os, sys, time
import requests

url = os.environ['WAY_URL'] + '/v1/messages'
with open(os.environ['WAY_BODY'], 'rb') as file:
    message = json.load(file)
options = {
    'verify': os.environ['WAY_CA'],
    'cert': (os.environ['WAY_CERT'], os.environ['WAY_KEY']),
}
count = int(os.environ['WAY_COUNT'])
session = requests.Session() if sys.argv[1] == 'kept' else requests
for measured in (False, True):
    begun, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        session.post(url, json=message, **options).raise_for_status()
    if measured:
        print(json.dumps({'seconds': time.perf_counter() - begun, 'cpu': time.process_time() - cpu}))
