// The machine around the gateway: files, signals, a full disk.
import '../promises/host.test.ts'
