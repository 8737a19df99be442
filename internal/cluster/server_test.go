package cluster_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"path/filepath"
	"testing"
	"time"

	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/join"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/port"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// nothing is an FSM that keeps nothing.
type nothing struct{}

func (nothing) Apply(*raft.Log) any                 { return nil }
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.ErrUnsupported }
func (nothing) Restore(r io.ReadCloser) error       { return r.Close() }

// host is a keyring that leads, and answers each question with err.
type host struct{ err error }

func (host) Changed() <-chan struct{}                            { return nil }
func (host) MembershipVersion() uint64                           { return 0 }
func (host) Leading() error                                      { return nil }
func (host) Notify()                                             {}
func (h host) LeaderProof(port.JoinConn, string) ([]byte, error) { return nil, h.err }
func (h host) AcceptJoin(context.Context, port.JoinConn, string, []byte) error {
	return h.err
}
func (host) PromoteServers(context.Context) error { return nil }
func (h host) Move(context.Context, raft.ServerID, raft.ServerAddress, func(context.Context, raft.Server) error) error {
	return h.err
}
func (h host) ReadmitServer(context.Context, raft.ServerID, raft.ServerAddress) error { return h.err }

// pair is server s1, which runs and leads, and the configuration has s2 beside it, which does not run.
type pair struct {
	*keyringtest.Nodes
	s1        *cluster.Server
	listeners map[raft.ServerID]net.Listener
}

func startPair(t *testing.T, h port.Host) pair {
	t.Helper()
	c, listeners := keyringtest.NewNodes(t, 2)
	s1, err := cluster.Start(t.Context(), cluster.Config{
		ID: "s1", Dir: filepath.Join(c.Dirs["s1"], "raft"), FSM: nothing{}, Logger: hclog.NewNullLogger(), DiskChanged: func() {},
		Section: func(r io.Reader) (io.Reader, error) { return r, nil },
		Addr:    c.Addrs["s1"], Listener: listeners["s1"], Cluster: "test", TLS: c.CA.Source("keyring://test/server/s1", nil),
		Peers: map[raft.ServerID]string{"s1": c.Addrs["s1"]},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s1.Close(); err != nil {
			t.Error(err)
		}
	})
	if leads := <-s1.Raft().LeaderCh(); !leads {
		t.Fatal("s1 does not lead")
	}
	if err := s1.Raft().AddNonvoter("s2", raft.ServerAddress(c.Addrs["s2"]), 0, 0).Error(); err != nil {
		t.Fatal(err)
	}
	s1.Serve(h, nil)
	return pair{c, s1, listeners}
}

// saysItIsAt has s2 tell s1 where it is.
func (p pair) saysItIsAt(ctx context.Context, addr string) {
	p.TB.Helper()
	if _, err := p.CallAs(ctx, "s2", "s1", "/node/hello", []byte(`{"addr":"`+addr+`"}`)); err != nil {
		p.TB.Fatal(err)
	}
}

func within10s(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestCallsFindAMemberWhereItSaysThatItIs, although the configuration says something else: until a leader
// has written it down, no other server would find it.
func TestCallsFindAMemberWhereItSaysThatItIs(t *testing.T) {
	ctx := within10s(t)
	p := startPair(t, host{})
	if err := p.listeners["s2"].Close(); err != nil {
		t.Fatal(err)
	}
	called := make(chan string, 1)
	at, stop := p.Mute("s2", called)
	defer stop()
	p.saysItIsAt(ctx, at)
	go p.s1.Port().CallMember(ctx, "s2", "/call", nil)
	select {
	case <-called:
	case <-ctx.Done():
		t.Error("it is called nowhere but at its old address")
	}
}

// TestCallsFindAMemberWhereItIsInSpiteOfWhatItSaid: it has gone back to where the configuration has it.
func TestCallsFindAMemberWhereItIsInSpiteOfWhatItSaid(t *testing.T) {
	ctx := within10s(t)
	p := startPair(t, host{})
	defer p.Pose("s2", p.listeners["s2"], func(context.Context, peer.Identity, string, []byte) ([]byte, error) { return nil, nil })()
	p.saysItIsAt(ctx, "127.0.0.1:1")
	if _, err := p.s1.Port().CallMember(ctx, "s2", "/call", nil); err != nil {
		t.Error(err)
	}
}

// TestOnlyAMemberSaysWhereItIs: of a server that is no member nothing is recorded, whatever it is answered.
func TestOnlyAMemberSaysWhereItIs(t *testing.T) {
	ctx := within10s(t)
	p := startPair(t, host{})
	const addr = "127.0.0.1:9"
	for id, want := range map[raft.ServerID]string{"s2": addr, "s9": ""} {
		_, err := p.CallAs(ctx, id, "s1", "/node/hello", []byte(`{"addr":"`+addr+`"}`))
		all := p.s1.Port().Addresses(raft.Server{ID: id})
		if got := all[len(all)-1]; got != want {
			t.Errorf("%s is at %q, want %q; it was answered %v", id, got, want, err)
		}
	}
}

// TestAServerLearnsOnlyThatItIsNoMember, whether its token is refused or it was removed while it asked.
func TestAServerLearnsOnlyThatItIsNoMember(t *testing.T) {
	for name, err := range map[string]error{"refused": join.ErrRefused, "removed": peer.ErrNotMember} {
		t.Run(name, func(t *testing.T) {
			ctx := within10s(t)
			p := startPair(t, host{err})
			if err := p.listeners["s2"].Close(); err != nil {
				t.Fatal(err)
			}
			_, err := p.CallAs(ctx, "s2", "s1", "/node/join", []byte(`{"addr":"127.0.0.1:9"}`))
			if refusal := (*peer.Refusal)(nil); !errors.As(err, &refusal) || refusal.Code != peer.NotMember {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestConfigurationNamesServersByAddressAndID(t *testing.T) {
	cfg := cluster.Config{ID: "s1", Peers: map[raft.ServerID]string{"s1": "h1:1", "s2": "h2:1"}}
	for _, entry := range []string{"a@b@h3:1", "h4:1", "s5@[::1]:1"} {
		c, err := port.ParseCandidate(entry)
		if err != nil || c.String() != entry {
			t.Errorf("%q is %q, %v", entry, c, err)
		}
		cfg.Join = append(cfg.Join, c)
	}
	want := map[string]raft.ServerID{"h2:1": "s2", "h3:1": "a@b", "h4:1": "", "[::1]:1": "s5"}
	if got := cfg.Named(); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
