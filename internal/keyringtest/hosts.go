package keyringtest

// Host: a server with a raft of the test's own, and Life: one that is alone.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/simulated"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// InDir is a valid Config on a real directory.
func (h *Host) InDir(dir string) keyring.Config {
	cfg := h.Config()
	cfg.Dir = dir
	return cfg
}

// OpenIn starts raft on a fresh FSM, and the keyring on a real directory.
func (h *Host) OpenIn(t testing.TB, dir string, change ...func(*keyring.Config)) error {
	t.Helper()
	h.FSM = keyring.NewFSM()
	h.Run(t, h.FSM)
	cfg := h.Config()
	cfg.Dir = dir
	for _, f := range change {
		f(&cfg)
	}
	k, err := keyring.Open(t.Context(), cfg)
	if err != nil {
		return err
	}
	h.Keyring = k
	h.Serving.Store(k)
	return nil
}

// MustOpenIn is OpenIn for a server alone, and waits until it is ready.
func (h *Host) MustOpenIn(t testing.TB, dir string, change ...func(*keyring.Config)) {
	t.Helper()
	if err := h.OpenIn(t, dir, change...); err != nil {
		t.Fatal(err)
	}
	if err := h.Keyring.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Seal seals something and remembers it.
func (v Sealings) Seal(t testing.TB, h *Host) {
	t.Helper()
	b, err := h.Keyring.Encrypt([]byte("data"), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	id, _ := keyring.CiphertextKeyID(b)
	v[id] = append(v[id], b)
}

// Host is a server with a raft of the test's own, for what a Cluster keeps to itself: the
// log, the snapshots, and what the FSM is made of.
type Host struct {
	ID    raft.ServerID
	Conf  *raft.Config
	Log   *raft.InmemStore
	Snaps raft.SnapshotStore
	Trans *raft.InmemTransport
	Raft  *raft.Raft

	FSM     *keyring.FSM
	Disk    *Disk
	Keyring *keyring.Keyring
	Serving atomic.Pointer[keyring.Keyring] // keyring, for the calls of others
	All     *[]*Host
	MayFail bool // its disk may be dead: Open and Close may fail
}

// NewHosts makes servers that are bootstrapped together and not started.
func NewHosts(t testing.TB, n int) []*Host {
	t.Helper()
	var hosts []*Host
	var conf raft.Configuration
	for i := range n {
		h := NewHost(t, raft.ServerID(fmt.Sprintf("h%d", i+1)), &hosts)
		conf.Servers = append(conf.Servers, raft.Server{ID: h.ID, Address: raft.ServerAddress(h.ID)})
	}
	for _, h := range hosts {
		if err := raft.BootstrapCluster(h.Conf, h.Log, h.Log, h.Snaps, h.Trans, conf); err != nil {
			t.Fatal(err)
		}
	}
	return hosts
}

// OpenHosts makes servers whose FSM is the keyring's alone, starts them, and returns them and the one that leads.
func OpenHosts(t testing.TB, n int) (hosts []*Host, leader *Host) {
	t.Helper()
	hosts = NewHosts(t, n)
	for _, h := range hosts {
		h.Open(t, nil)
	}
	return hosts, LeaderOf(t, hosts)
}

// NewQuickHosts makes servers for real time and real directories.
func NewQuickHosts(t testing.TB, n int) []*Host {
	t.Helper()
	hosts := NewHosts(t, n)
	pace := 200 * time.Millisecond
	if n == 1 { // nobody else is slow
		pace = 20 * time.Millisecond
	}
	for _, h := range hosts {
		h.Conf.HeartbeatTimeout, h.Conf.ElectionTimeout, h.Conf.LeaderLeaseTimeout = pace, pace, pace
	}
	return hosts
}

// NewHost makes a server that is linked with all others and in nobody's configuration.
func NewHost(t testing.TB, id raft.ServerID, all *[]*Host) *Host {
	t.Helper()
	h := &Host{ID: id, Log: raft.NewInmemStore(), Snaps: raft.NewInmemSnapshotStore(), Disk: NewDisk(), All: all}
	h.Conf = raft.DefaultConfig()
	h.Conf.LocalID = id
	h.Conf.TrailingLogs = 1 // who is behind gets a snapshot
	h.Conf.Logger = hclog.NewNullLogger()
	_, h.Trans = raft.NewInmemTransport(raft.ServerAddress(id))
	*all = append(*all, h)
	t.Cleanup(func() { h.Stop(t) })
	return h
}

// Run starts raft on fsm.
func (h *Host) Run(t testing.TB, fsm raft.FSM) {
	t.Helper()
	for _, o := range *h.All {
		if o != h {
			h.Trans.Connect(raft.ServerAddress(o.ID), o.Trans)
			o.Trans.Connect(raft.ServerAddress(h.ID), h.Trans)
		}
	}
	var err error
	if h.Raft, err = raft.NewRaft(h.Conf, fsm, h.Log, h.Log, h.Snaps, h.Trans); err != nil {
		t.Fatal(err)
	}
}

// Open starts raft on a fresh FSM, alone or before app, and the keyring on both.
func (h *Host) Open(t testing.TB, app raft.FSM) {
	t.Helper()
	h.FSM = keyring.NewFSM()
	fsm := raft.FSM(h.FSM)
	if app != nil {
		fsm = keyring.Mux(h.FSM, app)
	}
	h.Run(t, fsm)
	h.OpenKeyring(t)
}

// OpenKeyring opens the keyring on the raft that runs.
func (h *Host) OpenKeyring(t testing.TB) {
	t.Helper()
	k, err := keyring.Open(h.OnDisk(t), h.Config())
	if err != nil && !h.MayFail {
		t.Fatal(err)
	}
	h.Keyring = k
	h.Serving.Store(k)
}

// OnDisk has Open use the host's simulated disk.
func (h *Host) OnDisk(t testing.TB) context.Context {
	t.Helper()
	fsys, err := h.Disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	return simulated.WithDisk(t.Context(), fsys)
}

// Config is the host's configuration, on its simulated disk if Open has the context of OnDisk.
func (h *Host) Config() keyring.Config {
	cfg := keyring.Config{
		ID: h.ID, Dir: "simulated", Raft: h.Raft, FSM: h.FSM, Transport: HostCalls{h},
		KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	}
	cfg.EveryBuild = true
	return cfg
}

// Stop closes the keyring and ends raft, if they run.
func (h *Host) Stop(t testing.TB) {
	t.Helper()
	if h.Keyring != nil {
		if err := h.Keyring.Close(); err != nil && !h.MayFail {
			t.Errorf("%s: close: %v", h.ID, err)
		}
	}
	if h.Raft != nil {
		if err := h.Raft.Shutdown().Error(); err != nil {
			t.Errorf("%s: shut down: %v", h.ID, err)
		}
	}
	h.Keyring, h.Raft = nil, nil
	h.Serving.Store(nil)
	addr := raft.ServerAddress(h.ID)
	_, h.Trans = raft.NewInmemTransport(addr)
	for _, o := range *h.All {
		o.Trans.Disconnect(addr)
	}
}

// HostCalls is a Transport between hosts.
type HostCalls struct{ From *Host }

// Call implements keyring.Transport.
func (c HostCalls) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	for _, h := range *c.From.All {
		if k := h.Serving.Load(); h.ID == to && k != nil {
			return k.ServePeer(ctx, c.From.ID, request)
		}
	}
	return nil, errors.New("connection refused")
}

// LeaderOf waits for a leader whose keyring is ready.
func LeaderOf(t testing.TB, hosts []*Host) *Host {
	t.Helper()
	for {
		for _, h := range hosts {
			if h.Raft == nil || h.Raft.State() != raft.Leader || h.Raft.VerifyLeader().Error() != nil {
				continue
			}
			if h.Keyring != nil {
				if err := h.Keyring.WaitReady(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			return h
		}
		time.Sleep(time.Second) // virtual
	}
}

// Entries returns the commands of a server's log, from its first index on.
func (h *Host) Entries(t testing.TB) []*raft.Log {
	t.Helper()
	first, _ := h.Log.FirstIndex()
	last, _ := h.Log.LastIndex()
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		var l raft.Log
		if err := h.Log.GetLog(i, &l); err != nil {
			t.Fatal(err)
		}
		if l.Type == raft.LogCommand {
			logs = append(logs, &l)
		}
	}
	return logs
}

// Life is one server, alone, and what was sealed on it.
type Life struct {
	TB    testing.TB
	Hosts []*Host
	*Host
	Vault Sealings
}

// Sealings are ciphertexts by the key they are sealed under.
type Sealings map[keyring.KeyID][][]byte

// NewLife makes one that is not started.
func NewLife(t testing.TB) *Life {
	l := &Life{TB: t, Hosts: NewHosts(t, 1), Vault: Sealings{}}
	l.Host = l.Hosts[0]
	return l
}

// Start opens the server and waits until it is ready.
func (l *Life) Start() {
	l.TB.Helper()
	l.Open(l.TB, nil)
	LeaderOf(l.TB, l.Hosts)
}

// Seal seals something and remembers it.
func (l *Life) Seal() error {
	b, err := l.Keyring.Encrypt([]byte("data"), []byte("aad"))
	if err == nil {
		id, _ := keyring.CiphertextKeyID(b)
		l.Vault[id] = append(l.Vault[id], b)
	}
	return err
}

// Rotate gives up after a while: a disk that is dead never confirms a key.
func (l *Life) Rotate() error {
	ctx, cancel := context.WithTimeout(l.TB.Context(), time.Hour) // virtual
	defer cancel()
	_, err := l.Keyring.Rotate(ctx, keyring.RotateOptions{})
	return err
}

// CheckOpens wants a server to open all of it.
func (v Sealings) CheckOpens(t testing.TB, k *keyring.Keyring, when string) {
	t.Helper()
	for id, ciphertexts := range v {
		for _, c := range ciphertexts {
			if got, err := k.Decrypt(c, []byte("aad")); err != nil || string(got) != "data" {
				t.Errorf("%s: under %s: %q, %v", when, id, got, err)
			}
		}
	}
}

// Status is that of the keyring.
func (h *Host) Status(t testing.TB) keyring.Status {
	t.Helper()
	st, err := h.Keyring.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// CheckHolds wants every key that this server is recorded to hold to be on its disk after a
// loss of power, whatever was not synced.
func (h *Host) CheckHolds(t testing.TB, when string) {
	t.Helper()
	after := h.Disk.Crash(Dropped, 0)
	for _, k := range Ring(h.FSM).Keys {
		if b := after.Bytes(nks.FileName(k.ID)); k.HeldBy(string(h.ID)) {
			if f, err := nks.DecodeFile(b); err != nil || f.ID != k.ID || f.Check != k.Check {
				t.Errorf("%s: %s is recorded as a holder of %s, whose file a crash would leave as %d bytes (%v)", when, h.ID, k.ID, len(b), err)
			}
		}
	}
}

// Resume starts raft on a fresh FSM and app, without having it restore its snapshots.
func (h *Host) Resume(t testing.TB, app raft.FSM, load bool) {
	t.Helper()
	h.Conf.NoSnapshotRestoreOnStart = true
	h.FSM = keyring.NewFSM()
	if load {
		if err := h.FSM.Load(h.Snaps); err != nil {
			t.Fatal(err)
		}
	}
	h.Run(t, keyring.Mux(h.FSM, app))
}

// Unopened is what Open says when it has to refuse.
func (h *Host) Unopened(t testing.TB) error {
	t.Helper()
	k, err := keyring.Open(h.OnDisk(t), h.Config())
	if err == nil {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
	return err
}

// SnapshotAll has raft make a snapshot of all that is committed.
func (h *Host) SnapshotAll(t testing.TB) {
	t.Helper()
	h.Put(t, "before the snapshot")
	time.Sleep(time.Minute)
	for _, o := range *h.All {
		if err := o.Raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
}

// Put has the leader apply an entry of the host's.
func (h *Host) Put(t testing.TB, data string) {
	t.Helper()
	if err := h.Raft.Apply([]byte(data), 0).Error(); err != nil {
		t.Fatal(err)
	}
}

// CheckOrphans wants each key file that the ring does not know to be reported.
func CheckOrphans(t testing.TB, h *Host, when string) {
	t.Helper()
	st := h.Status(t)
	for name := range KeyFiles(h.Disk) {
		id, ok := nks.ParseFileName(name)
		if ring := Ring(h.FSM); !ok || ring.Key(id) != nil || ring.WasRemoved(id) {
			continue
		}
		if !slices.Contains(st.Orphans, keyring.KeyID(id)) {
			t.Errorf("%s: orphan %s is not reported: %v", when, name, st.Problems)
		}
	}
}

// OtherHost is a host that does not lead.
func OtherHost(hosts []*Host, leader *Host) *Host {
	for _, h := range hosts {
		if h != leader {
			return h
		}
	}
	return nil
}
