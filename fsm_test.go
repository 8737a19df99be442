package keyring_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/simulated"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// own is the Log.Extensions value that marks the keyring's entries. It is part of the format
// of every log, so it stands here as it is and not as the code has it.
const own = "keyring/1"

// host is a server with a raft of the test's own, for what a Cluster keeps to itself: the
// log, the snapshots, and what the FSM is made of.
type host struct {
	id    raft.ServerID
	conf  *raft.Config
	log   *raft.InmemStore
	snaps raft.SnapshotStore
	trans *raft.InmemTransport
	raft  *raft.Raft

	fsm     *keyring.FSM
	disk    *keyringtest.Disk
	keyring *keyring.Keyring
	serving atomic.Pointer[keyring.Keyring] // keyring, for the calls of others
	all     *[]*host
	mayFail bool // its disk may be dead: Open and Close may fail
}

// newHosts makes servers that are bootstrapped together and not started.
func newHosts(t testing.TB, n int) []*host {
	t.Helper()
	var hosts []*host
	var conf raft.Configuration
	for i := range n {
		h := newHost(t, raft.ServerID(fmt.Sprintf("h%d", i+1)), &hosts)
		conf.Servers = append(conf.Servers, raft.Server{ID: h.id, Address: raft.ServerAddress(h.id)})
	}
	for _, h := range hosts {
		if err := raft.BootstrapCluster(h.conf, h.log, h.log, h.snaps, h.trans, conf); err != nil {
			t.Fatal(err)
		}
	}
	return hosts
}

// newQuickHosts makes servers for real time and real directories.
func newQuickHosts(t *testing.T, n int) []*host {
	t.Helper()
	hosts := newHosts(t, n)
	pace := 200 * time.Millisecond
	if n == 1 { // nobody else is slow
		pace = 20 * time.Millisecond
	}
	for _, h := range hosts {
		h.conf.HeartbeatTimeout, h.conf.ElectionTimeout, h.conf.LeaderLeaseTimeout = pace, pace, pace
	}
	return hosts
}

// newHost makes a server that is linked with all others and in nobody's configuration.
func newHost(t testing.TB, id raft.ServerID, all *[]*host) *host {
	t.Helper()
	h := &host{id: id, log: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore(), disk: keyringtest.NewDisk(), all: all}
	h.conf = raft.DefaultConfig()
	h.conf.LocalID = id
	h.conf.TrailingLogs = 1 // who is behind gets a snapshot
	h.conf.Logger = hclog.NewNullLogger()
	_, h.trans = raft.NewInmemTransport(raft.ServerAddress(id))
	*all = append(*all, h)
	t.Cleanup(func() { h.stop(t) })
	return h
}

// run starts raft on fsm.
func (h *host) run(t testing.TB, fsm raft.FSM) {
	t.Helper()
	for _, o := range *h.all {
		if o != h {
			h.trans.Connect(raft.ServerAddress(o.id), o.trans)
			o.trans.Connect(raft.ServerAddress(h.id), h.trans)
		}
	}
	var err error
	if h.raft, err = raft.NewRaft(h.conf, fsm, h.log, h.log, h.snaps, h.trans); err != nil {
		t.Fatal(err)
	}
}

// open starts raft on a fresh FSM, alone or before app, and the keyring on both.
func (h *host) open(t testing.TB, app raft.FSM) {
	t.Helper()
	h.fsm = keyring.NewFSM()
	fsm := raft.FSM(h.fsm)
	if app != nil {
		fsm = keyring.Mux(h.fsm, app)
	}
	h.run(t, fsm)
	h.openKeyring(t)
}

func (h *host) openKeyring(t testing.TB) {
	t.Helper()
	k, err := keyring.Open(h.onDisk(t), h.config())
	if err != nil && !h.mayFail {
		t.Fatal(err)
	}
	h.keyring = k
	h.serving.Store(k)
}

// onDisk has Open use the host's simulated disk.
func (h *host) onDisk(t testing.TB) context.Context {
	t.Helper()
	fsys, err := h.disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	return simulated.WithDisk(t.Context(), fsys)
}

func (h *host) config() keyring.Config {
	cfg := keyring.Config{
		ID: h.id, Dir: "simulated", Raft: h.raft, FSM: h.fsm, Transport: calls{h},
		KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	}
	cfg.EveryBuild = true
	return cfg
}

func (h *host) stop(t testing.TB) {
	t.Helper()
	if h.keyring != nil {
		if err := h.keyring.Close(); err != nil && !h.mayFail {
			t.Errorf("%s: close: %v", h.id, err)
		}
	}
	if h.raft != nil {
		if err := h.raft.Shutdown().Error(); err != nil {
			t.Errorf("%s: shut down: %v", h.id, err)
		}
	}
	h.keyring, h.raft = nil, nil
	h.serving.Store(nil)
	addr := raft.ServerAddress(h.id)
	_, h.trans = raft.NewInmemTransport(addr)
	for _, o := range *h.all {
		o.trans.Disconnect(addr)
	}
}

// calls is a Transport between hosts.
type calls struct{ from *host }

func (c calls) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	for _, h := range *c.from.all {
		if k := h.serving.Load(); h.id == to && k != nil {
			return k.ServePeer(ctx, c.from.id, request)
		}
	}
	return nil, errors.New("connection refused")
}

// leaderOf waits for a leader whose keyring is ready.
func leaderOf(t testing.TB, hosts []*host) *host {
	t.Helper()
	for {
		for _, h := range hosts {
			if h.raft == nil || h.raft.State() != raft.Leader || h.raft.VerifyLeader().Error() != nil {
				continue
			}
			if h.keyring != nil {
				if err := h.keyring.WaitReady(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			return h
		}
		time.Sleep(time.Second) // virtual
	}
}

// entries returns the commands of a server's log, from its first index on.
func (h *host) entries(t testing.TB) []*raft.Log {
	t.Helper()
	first, _ := h.log.FirstIndex()
	last, _ := h.log.LastIndex()
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		var l raft.Log
		if err := h.log.GetLog(i, &l); err != nil {
			t.Fatal(err)
		}
		if l.Type == raft.LogCommand {
			logs = append(logs, &l)
		}
	}
	return logs
}

// command is a log entry of the keyring's.
func command(t testing.TB, index uint64, cmds ...meta.Command) *raft.Log {
	t.Helper()
	b, err := meta.Entry{Commands: cmds}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: index, Type: raft.LogCommand, Data: b, Extensions: []byte(own)}
}

// sink is a raft.SnapshotSink that counts how it ends.
type sink struct {
	buf              bytes.Buffer
	limit            int // bytes until writes fail; 0 is none
	closed, canceled int
}

var errDiskFull = errors.New("disk full")

func (s *sink) Write(p []byte) (int, error) {
	if s.limit > 0 && s.buf.Len()+len(p) > s.limit {
		n, _ := s.buf.Write(p[:s.limit-s.buf.Len()])
		return n, errDiskFull
	}
	return s.buf.Write(p)
}

func (s *sink) ID() string    { return "sink" }
func (s *sink) Close() error  { s.closed++; return nil }
func (s *sink) Cancel() error { s.canceled++; return nil }

// snapshotOf is the snapshot of an FSM as raft would store it.
func snapshotOf(t testing.TB, f raft.FSM) []byte {
	t.Helper()
	snap, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var s sink
	if err := snap.Persist(&s); err != nil {
		t.Fatal(err)
	}
	snap.Release()
	if s.closed != 1 || s.canceled != 0 {
		t.Fatalf("sink closed %d times, cancelled %d times", s.closed, s.canceled)
	}
	return s.buf.Bytes()
}

func restore(f raft.FSM, b []byte) error { return f.Restore(io.NopCloser(bytes.NewReader(b))) }

// transcript is what a cluster of three has written to its log in a life with all that
// happens: founding, rotations, a planned one, a wiped server, refusals, entries from nowhere.
func transcript(t *testing.T) (logs []*raft.Log, live [][]byte) {
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts(t, 3)
		for _, h := range hosts {
			h.open(t, nil)
		}
		leader := leaderOf(t, hosts)
		for range 3 {
			if _, err := leader.keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := leader.keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Minute)}); err != nil {
			t.Fatal(err)
		}
		foreign := leader.raft.Apply([]byte("not the keyring's"), 0)
		if err := foreign.Error(); err != nil {
			t.Fatal(err)
		}
		if err, ok := foreign.Response().(error); !ok || !errors.Is(err, keyring.ErrCorrupt) {
			t.Errorf("a foreign entry is answered with %v", foreign.Response())
		}
		again := *command(t, 0, meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
		refused := leader.raft.ApplyLog(raft.Log{Data: again.Data, Extensions: again.Extensions}, 0)
		if err := refused.Error(); err != nil {
			t.Fatal(err)
		}
		if err, ok := refused.Response().(error); !ok || !errors.Is(err, meta.ErrRefused) {
			t.Errorf("a second init is answered with %v", refused.Response())
		}
		wiped := hosts[slices.IndexFunc(hosts, func(h *host) bool { return h != leader })]
		wiped.stop(t)
		wiped.disk = keyringtest.NewDisk()
		wiped.open(t, nil)
		time.Sleep(2 * time.Minute) // the planned key becomes active
		synctest.Wait()
		for _, h := range hosts {
			live = append(live, snapshotOf(t, h.fsm))
		}
		logs = leaderOf(t, hosts).entries(t)
	})
	return logs, live
}

// TestI7ReplayGivesEqualSnapshots is invariant I7: the same log gives byte-equal snapshots on
// every server, at every index, whether it was replayed from the start or from a snapshot.
func TestI7ReplayGivesEqualSnapshots(t *testing.T) {
	logs, live := transcript(t)
	if len(logs) < 15 {
		t.Fatalf("the transcript has %d entries", len(logs))
	}
	var at [][]byte // after each entry, and before the first
	first := keyring.NewFSM()
	at = append(at, snapshotOf(t, first))
	for _, l := range logs {
		first.Apply(l)
		at = append(at, snapshotOf(t, first))
		if err := keyring.Ring(first).Check(); err != nil {
			t.Errorf("index %d: %v", l.Index, err)
		}
	}
	second, third := keyring.NewFSM(), keyring.NewFSM()
	for i, l := range logs {
		if a, b := second.Apply(l), third.Apply(l); fmt.Sprint(a) != fmt.Sprint(b) {
			t.Errorf("index %d: responses %v and %v", l.Index, a, b)
		}
		if !bytes.Equal(snapshotOf(t, second), at[i+1]) || !bytes.Equal(snapshotOf(t, third), at[i+1]) {
			t.Fatalf("index %d: snapshots differ", l.Index)
		}
	}
	for i := range at {
		f := keyring.NewFSM()
		if err := restore(f, at[i]); err != nil {
			t.Fatalf("restore after %d entries: %v", i, err)
		}
		for j, l := range logs[i:] {
			f.Apply(l)
			if !bytes.Equal(snapshotOf(t, f), at[i+j+1]) {
				t.Fatalf("restored after %d entries, snapshots differ at index %d", i, l.Index)
			}
		}
	}
	for i, b := range live {
		if !bytes.Equal(b, at[len(logs)]) {
			t.Errorf("server %d has another snapshot than the replay of its log", i+1)
		}
	}
}

// founded is an FSM with two keys, one of them active, and a tombstone.
func founded(t testing.TB) *keyring.FSM {
	t.Helper()
	f := keyring.NewFSM()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	key := func(n byte) meta.NewKey {
		return meta.NewKey{ID: keyring.KeyID{n}, Algorithm: "EdDSA", Public: []byte{n}, Check: meta.CheckValue{n}, Created: at}
	}
	server := meta.Server{ID: "s1", Keystore: meta.KeystoreID{1}}
	cmds := []meta.Command{
		{Init: &meta.Init{Cluster: meta.ClusterID{1}}},
		{Add: &meta.Add{Key: key(1)}},
		{Add: &meta.Add{Key: key(2)}},
		{Add: &meta.Add{Key: key(3)}},
		{Remove: &meta.Remove{ID: keyring.KeyID{3}, From: meta.StatePrepublished, Time: at}},
		{Hold: &meta.Hold{Server: server.ID, Keystore: server.Keystore, Gained: []meta.KeyID{{1}, {2}}}},
		{Activate: &meta.Activate{ID: keyring.KeyID{1}, Voters: []string{"s1"}, Confirmed: []meta.Server{server}, Time: at}},
	}
	for i, c := range cmds {
		if r := f.Apply(command(t, uint64(i+1), c)); r != nil {
			t.Fatal(r)
		}
	}
	return f
}

// checkUnchanged wants an error as the response, and neither a panic nor a change.
func checkUnchanged(t *testing.T, name string, l *raft.Log) {
	t.Helper()
	f := founded(t)
	before, snap := keyring.Ring(f), must(keyring.Ring(f).Encode())
	response := f.Apply(l)
	if _, ok := response.(error); !ok {
		t.Errorf("%s: the response is %v, not an error", name, response)
	}
	if keyring.Ring(f) != before || !bytes.Equal(must(before.Encode()), snap) {
		t.Errorf("%s: it changed something", name)
	}
}

func TestApplyAnswersWithAnErrorAndChangesNothing(t *testing.T) {
	valid := string(command(t, 0, meta.Command{Forget: &meta.Forget{Servers: []string{"s1"}}}).Data)
	if founded(t).Apply(&raft.Log{Index: 99, Type: raft.LogCommand, Data: []byte(valid), Extensions: []byte(own)}) != nil {
		t.Fatal("the entry that the others are made of is refused")
	}
	malformed := map[string]string{
		"nothing":             "",
		"zeros":               string(make([]byte, 64)),
		"not JSON":            "keyring",
		"null":                "null",
		"empty object":        "{}",
		"no command":          `{"version":1,"commands":[]}`,
		"null command":        `{"version":1,"commands":[null]}`,
		"empty command":       `{"version":1,"commands":[{}]}`,
		"unknown command":     `{"version":1,"commands":[{"melt":{"id":"` + keyring.KeyID{1}.String() + `"}}]}`,
		"two in one":          strings.Replace(valid, `{"forget"`, `{"rekey":{"id":"`+keyring.KeyID{1}.String()+`"},"forget"`, 1),
		"unknown member":      strings.Replace(valid, `"servers"`, `"x":1,"servers"`, 1),
		"repeated member":     strings.Replace(valid, `{"version":1`, `{"version":1,"version":1`, 1),
		"older version":       strings.Replace(valid, `"version":1`, `"version":0`, 1),
		"newer version":       strings.Replace(valid, `"version":1`, `"version":2`, 1),
		"newer, new command":  `{"version":2,"commands":[{"melt":{}}],"more":true}`,
		"negative version":    strings.Replace(valid, `"version":1`, `"version":-1`, 1),
		"version as text":     strings.Replace(valid, `"version":1`, `"version":"1"`, 1),
		"huge version":        strings.Replace(valid, `"version":1`, `"version":1e400`, 1),
		"trailing bytes":      valid + "x",
		"trailing space":      valid + " ",
		"deep":                strings.Repeat("[", 1<<20),
		"deep in a command":   `{"version":1,"commands":[{"forget":` + strings.Repeat(`{"servers":`, 1<<18),
		"not UTF-8":           strings.Replace(valid, "s1", "\xff\xfe", 1),
		"no server":           strings.Replace(valid, `"s1"`, "", 1),
		"unknown then known":  strings.Replace(valid, `[{"forget"`, `[{"melt":{}},{"forget"`, 1),
		"known, then unknown": strings.Replace(valid, `]}}]`, `]}},{"melt":{}}]`, 1),
	}
	for name, data := range malformed {
		checkUnchanged(t, name, &raft.Log{Index: 99, Type: raft.LogCommand, Data: []byte(data), Extensions: []byte(own)})
	}
	for i := range len(valid) {
		data := []byte(valid[:i])
		checkUnchanged(t, fmt.Sprintf("cut to %d bytes", i), &raft.Log{Index: 99, Type: raft.LogCommand, Data: data, Extensions: []byte(own)})
	}
	foreign := map[string]raft.Log{
		"no mark":             {Type: raft.LogCommand},
		"another version":     {Type: raft.LogCommand, Extensions: []byte("keyring/2")},
		"a longer mark":       {Type: raft.LogCommand, Extensions: []byte(own + "\x00")},
		"a shorter mark":      {Type: raft.LogCommand, Extensions: []byte(own[:8])},
		"a configuration":     {Type: raft.LogConfiguration, Extensions: []byte(own)},
		"a barrier":           {Type: raft.LogBarrier, Extensions: []byte(own)},
		"an unknown type":     {Type: 200, Extensions: []byte(own)},
		"no mark and no data": {Type: raft.LogCommand},
	}
	for name, l := range foreign {
		l.Index = 99
		if name != "no mark and no data" {
			l.Data = []byte(valid)
		}
		checkUnchanged(t, name, &l)
	}
}

func TestApplyDoesAllCommandsOfAnEntryOrNone(t *testing.T) {
	forget := meta.Command{Forget: &meta.Forget{Servers: []string{"s1"}}}
	refused := meta.Command{Rekey: &meta.Rekey{ID: keyring.KeyID{1}}}
	checkUnchanged(t, "good, then refused", command(t, 99, forget, refused))
	checkUnchanged(t, "refused, then good", command(t, 99, refused, forget))
	checkUnchanged(t, "good, refused, good", command(t, 99, forget, refused, forget))
	f := founded(t)
	if r := f.Apply(command(t, 99, forget, forget)); r != nil || len(keyring.Ring(f).Servers) != 0 {
		t.Errorf("two good ones: %v, %v", r, keyring.Ring(f).Servers)
	}
}

func TestApplysAnswerReachesTheProposer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, keyringtest.Options{})
		s := ready(t, c)
		for _, cmd := range []meta.Command{
			{Init: &meta.Init{Cluster: meta.ClusterID{1}}},
			{Rekey: &meta.Rekey{ID: s.Keyring.Keys()[0].ID}},
			{Remove: &meta.Remove{ID: s.Keyring.Keys()[0].ID, From: meta.StateActive, Time: time.Now().UTC().Round(0)}},
		} {
			if err := keyring.Propose(t.Context(), s.Keyring, cmd); !errors.Is(err, meta.ErrRefused) {
				t.Errorf("%+v: %v", cmd, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		synctest.Wait() // for what the keyring had to say itself
		index := s.Raft.LastIndex()
		if err := keyring.Propose(ctx, s.Keyring, meta.Command{Forget: &meta.Forget{Servers: []string{"x"}}}); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
		if err := keyring.Propose(t.Context(), s.Keyring, meta.Command{}); !errors.Is(err, meta.ErrMalformed) {
			t.Errorf("an empty command: %v", err)
		}
		if s.Raft.LastIndex() != index {
			t.Error("what was not to be proposed is in the log")
		}
		if err := keyring.Propose(t.Context(), s.Keyring, meta.Command{Forget: &meta.Forget{Servers: []string{"x"}}}); err != nil {
			t.Errorf("a good command: %v", err)
		}
	})
}

func TestSnapshotIsOfTheMomentItWasTaken(t *testing.T) {
	f := founded(t)
	want := snapshotOf(t, f)
	snap, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if r := f.Apply(command(t, 99, meta.Command{Forget: &meta.Forget{Servers: []string{"s1"}}})); r != nil {
		t.Fatal(r)
	}
	var s sink
	if err := snap.Persist(&s); err != nil || !bytes.Equal(s.buf.Bytes(), want) {
		t.Errorf("the snapshot has what was applied after it was taken (%v)", err)
	}
}

func TestPersistErrorCancelsTheSinkOnce(t *testing.T) {
	f := founded(t)
	whole := len(snapshotOf(t, f))
	for limit := 1; limit < whole; limit += 7 {
		snap, _ := f.Snapshot()
		s := sink{limit: limit}
		if err := snap.Persist(&s); !errors.Is(err, errDiskFull) || s.canceled != 1 || s.closed != 0 {
			t.Fatalf("full after %d bytes: %v, cancelled %d times, closed %d times", limit, err, s.canceled, s.closed)
		}
	}
}

// framed is a section with what a snapshot begins with, when it claims that length.
func framed(size uint64, section []byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte("keyring-snapshot"), size)
	sum := sha256.Sum256(section)
	return append(append(b, sum[:]...), section...)
}

// sectionAt is where the section begins.
const sectionAt = 16 + 8 + sha256.Size

// checkRestore restores b over another state: an error leaves that as it is; without one
// the ring is what it says, and one that can be.
func checkRestore(t *testing.T, name string, b []byte) error {
	t.Helper()
	f := keyring.NewFSM()
	if r := f.Apply(command(t, 1, meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{9}}})); r != nil {
		t.Fatal(r)
	}
	before := keyring.Ring(f)
	err := restore(f, b)
	switch ring := keyring.Ring(f); {
	case err != nil && ring != before:
		t.Errorf("%s: %v, and the state is another", name, err)
	case err != nil && !errors.Is(err, keyring.ErrCorrupt):
		t.Errorf("%s: %v is not ErrCorrupt", name, err)
	case err == nil && ring.Check() != nil:
		t.Errorf("%s: restored what can't be: %v", name, ring.Check())
	case err == nil:
		if again, err := ring.Encode(); err != nil || !bytes.Equal(again, b[sectionAt:]) {
			t.Errorf("%s: the ring is not what the snapshot says (%v)", name, err)
		}
	}
	return err
}

func TestRestoreOfADamagedSnapshotIsAnErrorAndNoChange(t *testing.T) {
	snap := snapshotOf(t, founded(t))
	if err := checkRestore(t, "the snapshot itself", snap); err != nil {
		t.Fatal(err)
	}
	section := snap[sectionAt:]
	size := uint64(len(section))
	bad := map[string][]byte{
		"nothing":             nil,
		"text":                []byte("hello"),
		"zeros":               make([]byte, 1000),
		"the magic alone":     []byte("keyring-snapshot"),
		"an empty section":    framed(0, nil),
		"a section too short": framed(size-1, section),
		"bytes after it":      append(bytes.Clone(snap), 'x'),
		"twice":               append(bytes.Clone(snap), snap...),
		"a wrong magic":       append([]byte("keyring-snapshop"), snap[16:]...),
		"a null section":      framed(4, []byte("null")),
		"an empty object":     framed(2, []byte("{}")),
		"the largest length":  framed(1<<64-1, section),
		"a negative length":   framed(1<<63, section),
	}
	for name, b := range bad {
		if checkRestore(t, name, b) == nil {
			t.Errorf("%s: restored", name)
		}
	}
	for i := range snap {
		if checkRestore(t, fmt.Sprintf("cut to %d bytes", i), snap[:i]) == nil {
			t.Errorf("cut to %d bytes: restored", i)
		}
		for bit := range 8 {
			if i > 100 && bit != i%8 {
				continue
			}
			b := bytes.Clone(snap)
			b[i] ^= 1 << bit
			if name := fmt.Sprintf("bit %d of byte %d", bit, i); checkRestore(t, name, b) == nil {
				t.Errorf("%s: restored", name)
			}
		}
	}
}

func TestRestoreReadErrorIsNoChange(t *testing.T) {
	snap := snapshotOf(t, founded(t))
	for _, n := range []int{0, 10, 20, 24, 100, len(snap)} {
		f := keyring.NewFSM()
		before := keyring.Ring(f)
		err := f.Restore(io.NopCloser(io.MultiReader(bytes.NewReader(snap[:n]), failingReader{})))
		if !errors.Is(err, errDiskFull) || keyring.Ring(f) != before {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errDiskFull }

func TestRestoreAllocatesNoMoreThanThereIs(t *testing.T) {
	for _, size := range []uint64{1 << 29, 1 << 30, 1 << 40, 1<<64 - 1} {
		f := keyring.NewFSM()
		b := framed(size, []byte(`{"version":1`))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := restore(f, b)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; err == nil || n > 1<<20 {
			t.Errorf("a section said to have %d bytes: %v, %d bytes allocated", size, err, n)
		}
	}
}

// naming returns a ciphertext that names another key.
func naming(ciphertext []byte, id keyring.KeyID) []byte {
	b := bytes.Clone(ciphertext)
	copy(b[1:17], id[:])
	return b
}

func TestAdmitTakesTheActiveKeysCiphertextsOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, keyringtest.Options{})
		s := ready(t, c)
		first, err := s.Keyring.Encrypt([]byte("x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.FSM.Admit(first); err != nil {
			t.Errorf("under the active key: %v", err)
		}
		pre, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.FSM.Admit(naming(first, pre.ID)); !errors.Is(err, keyring.ErrStaleKey) {
			t.Errorf("under a prepublished key: %v", err)
		}
		if err := s.FSM.Admit(first); err != nil {
			t.Errorf("under the active key, with another prepublished: %v", err)
		}
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		second, err := s.Keyring.Encrypt(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.FSM.Admit(second); err != nil {
			t.Errorf("of an empty plaintext: %v", err)
		}
		for name, b := range map[string][]byte{
			"an inactive key": first,
			"an unknown key":  naming(first, keyring.KeyID{1}),
			"the zero ID":     naming(first, keyring.KeyID{}),
			"an inactive key, with a body that is not its": append(first[:17:17], make([]byte, 100)...),
		} {
			if err := s.FSM.Admit(b); !errors.Is(err, keyring.ErrStaleKey) {
				t.Errorf("under %s: %v", name, err)
			}
		}
		for name, b := range map[string][]byte{
			"nil": nil, "empty": {}, "text": []byte("hello"), "cut short": second[:keyring.Overhead-1],
			"zeros": make([]byte, 100), "another version": append([]byte{2}, second[1:]...),
		} {
			if err := s.FSM.Admit(b); !errors.Is(err, keyring.ErrDecrypt) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := keyring.NewFSM().Admit(second); !errors.Is(err, keyring.ErrNotReady) || errors.Is(err, keyring.ErrStaleKey) {
			t.Errorf("before the first key: %v", err)
		}
	})
}
