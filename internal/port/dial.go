package port

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// Call calls the keyring of another server. It implements keyring.Transport.
func (p *Port) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	return p.CallMember(ctx, to, PathKeyring, request)
}

// CallMember makes a call of a server of raft's configuration.
func (p *Port) CallMember(ctx context.Context, to raft.ServerID, path string, body []byte) ([]byte, error) {
	s, known := p.Member(to)
	if !known {
		return nil, fmt.Errorf("server %q is not in the raft configuration", to)
	}
	return p.CallAt(ctx, Candidate{string(to), string(s.Address)}, path, body)
}

// CallAt makes a call of the server at an address, which has to prove the ID in c, if that is known.
func (p *Port) CallAt(ctx context.Context, c Candidate, path string, body []byte) ([]byte, error) {
	return p.client.Call(ctx, c.ID, c.Addr, path, body)
}

// Session opens a connection for several calls of the server at an address.
func (p *Port) Session(ctx context.Context, c Candidate) (*peer.Session, error) {
	return p.dialer.Session(ctx, c.ID, c.Addr)
}

// CallMemberAt makes a call of the server at an address, over a connection of its own. If the ID in c is not known, the
// server may be any that is in raft's configuration.
func (p *Port) CallMemberAt(ctx context.Context, c Candidate, path string, body []byte) ([]byte, error) {
	s, err := p.Session(ctx, c)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	id := s.Conn().Identity().ID
	if _, member := p.Member(raft.ServerID(id)); c.ID == peer.AnyServer && !member {
		return nil, fmt.Errorf("call %s: server %q is not in the raft configuration", c, id)
	}
	return s.Call(ctx, path, body)
}

// StreamLayer returns the connections of raft's on the port: to and from members.
func (p *Port) StreamLayer() raft.StreamLayer { return streamLayer{p} }

type streamLayer struct{ port *Port }

// Accept implements net.Listener.
func (l streamLayer) Accept() (net.Conn, error) {
	c, err := l.port.raftConns.Accept()
	if err != nil {
		return nil, err
	}
	return peer.RaftRequests(c), nil
}

// Close implements net.Listener.
func (l streamLayer) Close() error { return l.port.raftConns.Close() }

// Addr implements net.Listener: raft takes it for this server's address.
func (l streamLayer) Addr() net.Addr { return address(l.port.cfg.Addr) }

// address is a host:port at which the others reach a server, as it goes into the raft configuration.
type address string

// Network implements net.Addr.
func (address) Network() string { return "tcp" }

// String implements net.Addr.
func (a address) String() string { return string(a) }

// Dial implements raft.StreamLayer. The address has to be that of a server in the configuration, whose ID the other
// side must prove. The server is tried at all addresses at which it may be: so a cluster whose servers have all moved
// finds itself.
func (l streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	p := l.port
	ctx, cancel := context.WithTimeout(p.dialing, timeout)
	defer cancel()
	if !p.Running() {
		return nil, fmt.Errorf("dial %s: not started yet", addr)
	}
	all := p.Members()
	i := slices.IndexFunc(all, func(s raft.Server) bool { return s.Address == addr })
	if i < 0 {
		return nil, fmt.Errorf("dial %s: no server of the raft configuration has that address", addr)
	}
	return p.dial(ctx, all[i].ID, string(addr))
}

func (p *Port) dial(ctx context.Context, id raft.ServerID, addr string) (net.Conn, error) {
	conn, err := p.dialer.Dial(ctx, string(id), addr, peer.ALPNRaft)
	if err != nil {
		return nil, err
	}
	c := &dialed{peer.RaftAnswers(conn), conn, p}
	p.mu.Lock()
	p.dialed[c] = true
	p.mu.Unlock()
	if err := p.dialing.Err(); err != nil { // endRaft may not have seen it
		c.Close()
		return nil, fmt.Errorf("dial %s: raft shuts down: %w", addr, err)
	}
	if _, member := p.Member(id); !member { // it was removed in between
		c.Close()
		return nil, fmt.Errorf("dial %s: server %q was removed", addr, id)
	}
	return c, nil
}

// elsewhere returns further addresses of a server of the configuration that is not found at addr.
func (p *Port) elsewhere(id, addr string) []string {
	if !p.Running() {
		return nil
	}
	if s, known := p.Member(raft.ServerID(id)); known && string(s.Address) == addr {
		return p.Addresses(s)[1:]
	}
	return nil
}

// Addresses returns where a server may be: where raft's configuration has it, where Peers has it, and where it has
// said itself that it is.
func (p *Port) Addresses(s raft.Server) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := []string{string(s.Address)}
	for _, addr := range []string{p.cfg.Peers[s.ID], p.moved[s.ID]} {
		if addr != "" && !slices.Contains(all, addr) {
			all = append(all, addr)
		}
	}
	return all
}

// NoteAddress records where a member has said that it is. The server that answers there has to prove that it is that member.
func (p *Port) NoteAddress(id raft.ServerID, addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved[id] = addr
}

// dialed is a connection of raft's that this server has made.
type dialed struct {
	net.Conn
	peer *peer.Conn // below it
	port *Port
}

// Close implements net.Conn.
func (c *dialed) Close() error {
	c.port.mu.Lock()
	delete(c.port.dialed, c)
	c.port.mu.Unlock()
	return c.Conn.Close()
}

// hangUp closes connections of raft's that this server has made.
func (p *Port) hangUp(to func(peer.Identity) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.dialed {
		if to(c.peer.Identity()) {
			delete(p.dialed, c)
			c.peer.NetConn().Close() // raft closes the rest, if it still uses it
		}
	}
}
