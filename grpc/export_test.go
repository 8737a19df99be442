package keyringgrpc

import (
	"context"
	"net"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// What connections are for.
const (
	CallProtocol = callProtocol
	RaftProtocol = raftProtocol
	MaxPending   = maxPending
	MaxPerServer = maxPerServer
	MaxCalls     = maxCalls
	MaxClients   = maxClients
	MaxMessage   = maxMessage
	MaxLines     = maxLines
	Patience     = patience
	RecheckEvery = recheckEvery
)

// Host is what Peers needs of a Keyring.
type Host = host

// AttachTo has the members in a list in place of a raft.
func (p *Peers) AttachTo(members func() []raft.Server) { p.attach(members) }

// Follow has the members, and the end, of a raft.
func (p *Peers) Follow(r *raft.Raft) { p.follow(r) }

// Unattach undoes AttachTo.
func (p *Peers) Unattach() { p.member.Store(nil) }

// StartFor has something answer in place of a Keyring.
func (p *Peers) StartFor(h Host) { p.start(h) }

// DialWith has the connections of other servers made by dial.
func (p *Peers) DialWith(dial func(ctx context.Context, network, addr string) (net.Conn, error)) {
	p.dialRaw = dial
}

// Connections returns how many connections of servers there are, and how many handshakes are under way.
func (p *Peers) Connections() (open, pending int) {
	all := p.conns.all()
	p.conns.mu.Lock()
	defer p.conns.mu.Unlock()
	return len(all), len(p.conns.pending)
}

// Unstart undoes StartFor.
func (p *Peers) Unstart() { p.keys.Store(nil) }

// Links returns how many servers have a grpc.ClientConn here.
func (p *Peers) Links() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Certificates is keyring.Config.Certificates.
func (p *Peers) Certificates() ([]keyring.Certificate, error) { return p.certificates() }
