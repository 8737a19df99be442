package port_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/port"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// lines is the FSM of a host: the commands that it was given.
type lines struct {
	mu  sync.Mutex // guards below
	all []string
}

func (l *lines) Apply(entry *raft.Log) any {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(entry.Data))
	return nil
}

func (l *lines) Snapshot() (raft.FSMSnapshot, error) { return linesAt(l.now()), nil }

func (l *lines) Restore(r io.ReadCloser) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(json.NewDecoder(r).Decode(&l.all), r.Close())
}

func (l *lines) now() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

type linesAt []string

func (l linesAt) Persist(sink raft.SnapshotSink) error {
	if err := json.NewEncoder(sink).Encode(l); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (linesAt) Release() {}

// diskHost is a server of a host with a raft of its own, on disk.
type diskHost struct {
	t    *testing.T
	id   raft.ServerID
	dir  string
	addr string // where it listens
	net  *keyringtest.Pipes
	app  *lines
	raft *raft.Raft
	keys *keyring.Keyring // nil while it is on plain TCP
	stop func()
}

// stores opens what raft has on disk.
func (h *diskHost) stores() (*raft.Config, *raftboltdb.BoltStore, raft.SnapshotStore) {
	h.t.Helper()
	log, err := raftboltdb.NewBoltStore(filepath.Join(h.dir, "raft.db"))
	if err != nil {
		h.t.Fatal(err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(h.dir, 2, hclog.NewNullLogger())
	if err != nil {
		h.t.Fatal(err)
	}
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger, conf.TrailingLogs = h.id, hclog.NewNullLogger(), 2
	return conf, log, snaps
}

// startPlain starts the server as it was before the keyring. A server without a log bootstraps with the configuration.
func (h *diskHost) startPlain(first raft.Configuration) {
	h.t.Helper()
	conf, log, snaps := h.stores()
	trans := raft.NewNetworkTransport(plain{h.net.Listen(h.t, h.addr), h.net}, 3, time.Second, io.Discard)
	if err := raft.BootstrapCluster(conf, log, log, snaps, trans, first); err != nil {
		h.t.Fatal(err)
	}
	h.app = &lines{}
	var err error
	if h.raft, err = raft.NewRaft(conf, h.app, log, log, snaps, trans); err != nil {
		h.t.Fatal(err)
	}
	h.stop = sync.OnceFunc(func() {
		if err := errors.Join(h.raft.Shutdown().Error(), log.Close()); err != nil {
			h.t.Error(err)
		}
	})
	h.t.Cleanup(func() { h.stop() })
}

// plain is what raft.NewTCPTransport runs on, in place of TCP on pipes.
type plain struct {
	net.Listener
	net *keyringtest.Pipes
}

func (p plain) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return p.net.DialContext(ctx, "tcp", string(addr))
}

// startPort starts the server on what it has on disk, with a port and the keyring.
func (h *diskHost) startPort(cfg port.Config) {
	h.t.Helper()
	cfg.Listener = h.net.Listen(h.t, cfg.Addr)
	port.DialWith(&cfg, h.net.DialContext)
	p, err := port.Listen(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	conf, log, snaps := h.stores()
	fsm := keyring.NewFSM()
	h.app = &lines{}
	if h.raft, err = raft.NewRaft(conf, keyring.Mux(fsm, h.app), log, log, snaps, p.RaftTransport(log, fsm)); err != nil {
		h.t.Fatal(err)
	}
	h.keys, err = p.Open(h.t.Context(), keyring.Config{
		Dir: filepath.Join(h.dir, "keystore"), Raft: h.raft, FSM: fsm, KEKs: []keyring.KEK{keyring.InlineKEK()},
		Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.stop = sync.OnceFunc(func() {
		if err := errors.Join(h.keys.Close(), h.raft.Shutdown().Error(), p.Close(), log.Close()); err != nil {
			h.t.Error(err)
		}
	})
	h.t.Cleanup(func() { h.stop() })
}

// write has the leader among these servers append a command, as soon as there is one, and returns that leader.
func write(t *testing.T, command string, hosts ...*diskHost) *diskHost {
	t.Helper()
	for range 1000 {
		for _, h := range hosts {
			if h.raft.State() == raft.Leader && h.raft.Apply([]byte(command), 0).Error() == nil {
				return h
			}
		}
		time.Sleep(20 * time.Millisecond) // virtual
	}
	t.Fatalf("nobody takes %q", command)
	return nil
}

// awaitLines waits until a server has applied all commands.
func (h *diskHost) awaitLines(want []string) {
	h.t.Helper()
	for range 1000 {
		if slices.Equal(h.app.now(), want) {
			return
		}
		time.Sleep(20 * time.Millisecond) // virtual
	}
	h.t.Fatalf("%s has %q, want %q", h.id, h.app.now(), want)
}

// TestClusterOnPlainTCPMovesToPorts at the same addresses.
func TestClusterOnPlainTCPMovesToPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { moveToPorts(t, func(h *diskHost) string { return h.addr }) })
}

// TestClusterOnPlainTCPHasMovedToOtherAddresses, which it writes into the raft configuration by itself.
func TestClusterOnPlainTCPHasMovedToOtherAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts, addrs := moveToPorts(t, func(h *diskHost) string { return string(h.id) + ".test:7900" })
		checkAddresses(t, hosts, addrs)
	})
}

// moveToPorts moves a cluster, server by server, and requires that nothing is lost: what was in its logs and snapshots, and what
// was written meanwhile. Nothing can be written from the stop of the second server until it has started and a leader is elected.
func moveToPorts(t *testing.T, to func(*diskHost) string) (hosts []*diskHost, addrs map[raft.ServerID]string) {
	t.Helper()
	hosts, commands := startPlainHosts(t)
	addrs = map[raft.ServerID]string{}
	for _, h := range hosts {
		addrs[h.id] = to(h)
	}
	ca := keyringtest.NewCA(t)
	restart := func(h *diskHost) {
		h.stop()
		h.startPort(port.Config{ID: h.id, Cluster: "test", Addr: addrs[h.id], Addresses: addrs, TLS: ca.Source(uri(h.id), nil)})
	}
	say := func(command string, within time.Duration, at ...*diskHost) {
		began := time.Now()
		write(t, command, at...)
		if took := time.Since(began); took > within {
			t.Errorf("%v until somebody takes %q", took, command)
		}
		commands = append(commands, command)
	}
	restart(hosts[0])
	say("the first is restarted", 0, hosts[1:]...)
	restart(hosts[1])
	say("the second is restarted", 10*time.Second, hosts[:2]...)
	restart(hosts[2])
	say("all are restarted", 0, hosts...)
	checkMoved(t, hosts, commands)
	return hosts, addrs
}

// startPlainHosts starts three servers on plain TCP, of which the last one leads, each with a snapshot and a log.
func startPlainHosts(t *testing.T) (hosts []*diskHost, commands []string) {
	t.Helper()
	var first raft.Configuration
	network := &keyringtest.Pipes{}
	for i := range 3 {
		h := &diskHost{t: t, id: raft.ServerID(fmt.Sprintf("h%d", i+1)), dir: t.TempDir(), addr: fmt.Sprintf("10.0.0.%d:7000", i+1), net: network}
		hosts = append(hosts, h)
		first.Servers = append(first.Servers, raft.Server{ID: h.id, Address: raft.ServerAddress(h.addr)})
	}
	for _, h := range hosts {
		h.startPlain(first)
	}
	for i := range 10 {
		commands = append(commands, fmt.Sprintf("command %d", i))
		write(t, commands[i], hosts...)
	}
	for _, h := range hosts {
		h.awaitLines(commands)
		if err := h.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	commands = append(commands, "after the snapshot")
	leader := write(t, "after the snapshot", hosts...)
	i := slices.Index(hosts, leader)
	hosts[i], hosts[2] = hosts[2], hosts[i]
	return hosts, commands
}

// checkMoved requires that every server has all commands, and that the keyring works.
func checkMoved(t *testing.T, hosts []*diskHost, commands []string) {
	t.Helper()
	for _, h := range hosts {
		h.awaitLines(commands)
		if err := h.keys.WaitReady(t.Context()); err != nil {
			t.Fatalf("%s: %v", h.id, err)
		}
	}
	sealed, err := write(t, "ready", hosts...).keys.Encrypt([]byte("data"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		keyringtest.AwaitHolders(h.keys, h.keys.Keys()[0].ID, 3)
		if got, err := h.keys.Decrypt(sealed, nil); err != nil || string(got) != "data" {
			t.Errorf("%s opens %q, %v", h.id, got, err)
		}
	}
}

// checkAddresses waits until the raft configuration says where the servers are now: each tells the leader.
func checkAddresses(t *testing.T, hosts []*diskHost, addrs map[raft.ServerID]string) {
	t.Helper()
	moved := func(s raft.Server) bool { return string(s.Address) == addrs[s.ID] }
	for began := time.Now(); ; time.Sleep(time.Second) { // virtual
		servers := hosts[0].raft.GetConfiguration().Configuration().Servers
		if !slices.ContainsFunc(servers, func(s raft.Server) bool { return !moved(s) }) {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("by the configuration the servers are %v, and they are at %v", servers, addrs)
		}
	}
}
