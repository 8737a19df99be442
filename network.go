package keyring

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// Paths of the calls between nodes.
const (
	pathHello   = "/node/hello"   // what a server is, for one that has no raft log
	pathJoin    = "/node/join"    // to be taken into the configuration
	pathProof   = "/node/proof"   // of the cluster, to a server that has a join token
	pathEncrypt = "/node/encrypt" // forwarded to the leader
	pathDecrypt = "/node/decrypt"
	pathSign    = "/node/sign"
	pathRotate  = "/node/rotate"
	pathRemove  = "/node/remove"
	pathReady   = "/node/ready"
	pathStatus  = "/node/status"

	pathAddServer    = "/node/add-server"
	pathRemoveServer = "/node/remove-server"
	pathJoinToken    = "/node/join-token"
	pathWithdraw     = "/node/withdraw-join-token"
)

// network is a node's port, and what it tells servers that have no raft log.
type network struct {
	*cluster.Port
	node  *Node
	fresh atomic.Bool         // this server has found no raft log, and has not founded one yet
	join  []cluster.Candidate // who may know the leader that is to take this server in; nil if it need not be
	joins mono.Limits         // log lines about servers that may not join

	mu       sync.Mutex                 // guards below
	founders map[raft.ServerID][]string // whom servers that are to found the cluster with this one have named, by their ID
}

func listen(n *Node) (*network, error) {
	port, err := cluster.Listen(cluster.PortConfig{
		ID: n.cfg.ID, Cluster: n.cfg.Cluster, Addr: n.cfg.Addr, Listen: n.cfg.listen, Listener: n.cfg.Listener,
		TLS: n.cfg.TLS, Peers: n.cfg.Peers, Logger: n.log,
	})
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	w := &network{Port: port, node: n, founders: map[raft.ServerID][]string{}}
	port.Open(map[string]cluster.Handler{pathHello: w.serveHello, pathProof: w.whenRunning(w.serveProof), pathJoin: w.whenRunning(w.serveJoin)})
	return w, nil
}

// whenRunning refuses calls before raft and the keyring run.
func (w *network) whenRunning(h cluster.Handler) cluster.Handler {
	return func(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
		if !w.ready() {
			return nil, &peer.Refusal{Code: peer.NotReady}
		}
		return h(ctx, from, body)
	}
}

// ready reports whether raft and the keyring are there.
func (w *network) ready() bool { return w.Running() }

// serveHello answers a server that asks what this one is.
func (w *network) serveHello(_ context.Context, from raft.ServerID, body []byte) ([]byte, error) {
	w.noteMoved(from, body)
	w.noteFounders(from, body)
	return w.hello()
}

// calls are the calls that members may make.
func (n *Node) calls() map[string]cluster.Handler {
	calls := map[string]cluster.Handler{cluster.PathKeyring: n.keys.ServePeer}
	for _, path := range []string{pathEncrypt, pathDecrypt, pathSign, pathRotate, pathRemove, pathReady, pathStatus,
		pathAddServer, pathRemoveServer, pathJoinToken, pathWithdraw} {
		calls[path] = func(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
			return n.serveForwarded(ctx, from, path, body)
		}
	}
	return calls
}

// membership tells the port when raft's configuration may have changed.
type membership struct{ keys *Keyring }

func (m membership) Changed() <-chan struct{} { return m.keys.Changed() }
func (m membership) Configurations() uint64   { return m.keys.MembershipVersion() }
