package keyringgrpc_test

import (
	"context"
	"net"
	"strings"
	"testing"

	keyringgrpc "example.com/keyring/grpc"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc/test/bufconn"
)

// virtual is a cluster whose connections are in memory: in a bubble of testing/synctest time passes by itself. An address is an
// ID with a port.
type virtual struct {
	*cluster
	ports     map[string]*port
	listeners map[string]*bufconn.Listener
}

func newVirtual(t *testing.T, ids ...string) *virtual {
	v := &virtual{newCluster(t), map[string]*port{}, map[string]*bufconn.Listener{}}
	for _, id := range ids {
		v.start(id)
	}
	return v
}

// start starts the port of a member.
func (v *virtual) start(id string, change ...func(*keyringgrpc.Config)) *port {
	ln := bufconn.Listen(1 << 20)
	p := v.portOn(ln, id+":1", raft.ServerID(id), change...)
	p.DialWith(v.dial)
	v.set(raft.ServerID(id), p.addr)
	v.ports[id], v.listeners[id] = p, ln
	return p
}

func (v *virtual) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	return v.listeners[strings.TrimSuffix(addr, ":1")].DialContext(ctx)
}
