package records_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/records"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// swapOf is the entry that moves the ciphertext n of key 1 to key 2.
func swapOf(name string, n uint64) []byte {
	old := sha256.Sum256(ciphertext(1, n))
	return encodeBytes(append(append(encodeBytes(nil, name), 0), old[:]...), string(ciphertext(2, n)))
}

func ptr(n uint64) *uint64 { return &n }

// TestPutComparesAndSeals: versions, several records in one entry, and a rotation between the sealing and the entry.
func TestPutComparesAndSeals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, justTheMap)
		leader := c.leader()
		m, secret := mapOf(leader), [][]byte{[]byte("secret")}
		one, err := m.Put(t.Context(), records.Write{Name: "a", Parts: secret, If: ptr(0)})
		if err != nil {
			t.Fatal(err)
		}
		for what, w := range map[string][]records.Write{
			"a name that is there":           {{Name: "a", Parts: secret, If: ptr(0)}},
			"another version":                {{Name: "a", Parts: secret, If: ptr(one + 1)}},
			"a deletion of another version":  {{Name: "a", Delete: true, If: ptr(one + 1)}},
			"one of two":                     {{Name: "b", Parts: secret}, {Name: "a", Meta: []byte("x"), If: ptr(one + 1)}},
			"a version of what is not there": {{Name: "b", Parts: secret, If: ptr(one)}},
		} {
			if _, err := m.Put(t.Context(), w...); !errors.Is(err, records.ErrVersion) || errors.Is(err, records.ErrUncertain) {
				t.Errorf("%s: %v", what, err)
			}
		}
		two, err := m.Put(t.Context(),
			records.Write{Name: "a", Parts: secret, If: &one}, records.Write{Name: "b", Meta: []byte("no parts")},
			records.Write{Name: "c", Parts: [][]byte{nil, []byte("second")}}, records.Write{Name: "d", Delete: true})
		if r, ok := m.Get("b"); err != nil || !ok || r.Version != two || string(r.Meta) != "no parts" {
			t.Errorf("%+v, %v", r, err)
		}
		c.check("put", map[string][]string{"a": {"secret"}, "b": {}, "c": {"", "second"}})

		proposals := 0
		m.Connect(leader.Keyring, func(ctx context.Context, cmd []byte) (any, error) {
			if proposals++; proposals == 1 {
				keyringtest.RotateWhenReady(t, c.Cluster)
			}
			return records.Through(leader.Raft)(ctx, cmd)
		})
		three, err := m.Put(t.Context(), records.Write{Name: "c", Parts: secret, If: &two})
		if r, _ := m.Get("c"); err != nil || proposals != 2 || r.Version != three || r.KeyID(0) != keyring.KeyID(keyringtest.Ring(leader.FSM).Active().ID) {
			t.Errorf("%d proposals, %v", proposals, err)
		}
		if _, err := m.Put(t.Context(), records.Write{Name: "a", Delete: true, If: &two}); err != nil {
			t.Error(err)
		}
		if _, _, err := m.Open("a"); !errors.Is(err, records.ErrNotFound) {
			t.Error(err)
		}
		c.check("deleted", map[string][]string{"b": {}, "c": {"secret"}})
	})
}

// TestThroughNamesNoLeaderWhileOneHandsOver: raft takes no command then.
func TestThroughNamesNoLeaderWhileOneHandsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conf, store := raft.DefaultConfig(), raft.NewInmemStore()
		conf.LocalID, conf.Logger = "s1", hclog.NewNullLogger()
		addr, transport := raft.NewInmemTransport("s1")
		silent, other := raft.NewInmemTransport("s2") // nobody takes its calls: the hand-over takes until its timeout
		transport.Connect(silent, other)
		r, err := raft.NewRaft(conf, keyring.NewFSM(), store, store, raft.NewInmemSnapshotStore(), transport)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { r.Shutdown().Error() }()
		first := raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: addr}}}
		if err := r.BootstrapCluster(first).Error(); err != nil {
			t.Fatal(err)
		}
		for !<-r.LeaderCh() {
		}
		r.AddVoter("s2", silent, 0, 0)
		synctest.Wait()
		transfer := r.LeadershipTransferToServer("s2", silent)
		synctest.Wait()
		if r.State() != raft.Leader {
			t.Fatal("the hand-over is over: this is no test")
		}
		if _, err := records.Through(r)(t.Context(), []byte("cmd")); !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("a command in a hand-over: %v", err)
		}
		transfer.Error()
		time.Sleep(time.Minute) // virtual: raft's call ends
	})
}

// TestThroughProposesNothingThatIsTooLong: a port would carry such an entry to no other server, and raft would stand still.
func TestThroughProposesNothingThatIsTooLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, justTheMap)
		r := c.leader().Raft
		before := r.LastIndex()
		if _, err := records.Through(r)(t.Context(), make([]byte, keyring.MaxCommand+1)); !errors.Is(err, keyring.ErrTooLong) {
			t.Errorf("a command of a byte too many: %v", err)
		}
		if after := r.LastIndex(); after != before {
			t.Errorf("it has made %d entries", after-before)
		}
	})
}

// TestPartsOpenNowhereElse: a part is bound to its record and to its number.
func TestPartsOpenNowhereElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, justTheMap)
		leader := c.leader()
		m := mapOf(leader)
		if _, err := m.Put(t.Context(), records.Write{Name: "a", Parts: [][]byte{[]byte("0"), []byte("1")}}); err != nil {
			t.Fatal(err)
		}
		r, _ := m.Get("a")
		for part, sealed := range r.Parts {
			for _, elsewhere := range [][]byte{records.AAD("a", 1-part), records.AAD("b", part), records.AAD("", part), []byte("a"), nil} {
				if _, err := leader.Keyring.Decrypt(sealed, elsewhere); !errors.Is(err, keyring.ErrDecrypt) {
					t.Errorf("part %d with %q: %v", part, elsewhere, err)
				}
			}
		}
		forged := m.View() // of another server, whose file somebody has altered
		var b bytes.Buffer
		forged.WriteTo(&b)
		swapped := bytes.Clone(b.Bytes()[:b.Len()-sha256.Size])
		i, j := bytes.Index(swapped, r.Parts[0]), bytes.Index(swapped, r.Parts[1])
		copy(swapped[i:], r.Parts[1])
		copy(swapped[j:], r.Parts[0])
		if err := m.RestoreFrom(bytes.NewReader(sum(swapped))); err != nil {
			t.Fatal(err)
		}
		if _, parts, err := m.Open("a"); !errors.Is(err, keyring.ErrDecrypt) || !strings.Contains(err.Error(), `record "a", part 0`) {
			t.Errorf("%q, %v", parts, err)
		}
	})
	// 18 bytes of label, 4 of the number, the name: nobody may change that.
	const want = "6b657972696e67207265636f7264732076310000003f64622f70617373"
	if got := hex.EncodeToString(records.AAD("db/pass", 63)); got != want {
		t.Errorf("the AAD is %s", got)
	}
}

// TestPutOnWhatIsNotReady: before Connect, elsewhere than on the leader, and with a host's Apply that answers something else.
func TestPutOnWhatIsNotReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, justTheMap)
		leader := c.leader()
		w := records.Write{Name: "a", Parts: [][]byte{[]byte("secret")}}
		for _, s := range c.Servers {
			if s == leader {
				continue
			}
			for _, w := range []records.Write{w, {Name: "a", Delete: true}} {
				_, err := mapOf(s).Put(t.Context(), w)
				var elsewhere keyring.NotLeaderError
				if !errors.As(err, &elsewhere) || elsewhere.Leader != leader.ID || errors.Is(err, records.ErrUncertain) {
					t.Errorf("%s: %v", s.ID, err)
				}
			}
		}
		m := records.New(leader.FSM)
		if _, err := m.Put(t.Context(), w); !errors.Is(err, keyring.ErrNotReady) {
			t.Error(err)
		}
		if _, _, err := m.Open("a"); !errors.Is(err, keyring.ErrNotReady) {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := m.Replace(ctx, []keyring.Replacement{{}}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		m.Connect(leader.Keyring, func(context.Context, []byte) (any, error) { return "done", nil })
		if _, err := m.Put(t.Context(), w); !errors.Is(err, records.ErrUncertain) || !strings.Contains(err.Error(), "string") {
			t.Error(err)
		}
	})
}

// TestCommandsAreAsDocumented: what Put and Replace propose, byte for byte.
func TestCommandsAreAsDocumented(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, justTheMap)
		leader := c.leader()
		m := mapOf(leader)
		var got []byte
		m.Connect(leader.Keyring, func(ctx context.Context, cmd []byte) (any, error) {
			got = bytes.Clone(cmd)
			return records.Through(leader.Raft)(ctx, cmd)
		})
		_, err := m.Put(t.Context(), records.Write{Name: "gone", Delete: true, If: ptr(0)},
			records.Write{Name: "a", Meta: []byte("meta"), Parts: [][]byte{[]byte("one"), nil}, If: ptr(0)}, records.Write{Name: "b", Meta: []byte("m")})
		if err != nil {
			t.Fatal(err)
		}
		a, _ := m.Get("a")
		parts := []modelPart{{data: string(a.Parts[0])}, {data: string(a.Parts[1])}}
		want := encodeCommand('w', []byte("\x03\x00\x04gone\x00\x00"), encodeParts([]byte("\x01\x00\x01a\x04meta"), parts), []byte("\x00\x01b\x01m\x00"))
		if !bytes.Equal(got, want) {
			t.Errorf("Put has proposed\n%q, want\n%q", got, want)
		}
		fresh, err := leader.Keyring.Encrypt(nil, records.AAD("a", 1))
		if err != nil {
			t.Fatal(err)
		}
		conflicts, err := m.Replace(t.Context(), []keyring.Replacement{
			{Sealed: keyring.Sealed{Ref: "a#1", Ciphertext: a.Parts[1]}, New: fresh}, {Sealed: keyring.Sealed{Ref: "b", Ciphertext: fresh}, New: fresh},
		})
		one, two := sha256.Sum256(a.Parts[1]), sha256.Sum256(fresh)
		want = encodeCommand('s', encodeBytes([]byte("\x01a\x01"+string(one[:])), string(fresh)), encodeBytes([]byte("\x01b\x00"+string(two[:])), string(fresh)))
		if a, _ = m.Get("a"); err != nil || conflicts != 1 || !bytes.Equal(got, want) || !bytes.Equal(a.Parts[1], fresh) {
			t.Errorf("%d conflicts, %v; Replace has proposed\n%q, want\n%q", conflicts, err, got, want)
		}
	})
}

// TestPutBeyondARaftCommand is refused before it is proposed.
func TestPutBeyondARaftCommand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, justTheMap)
		leader := c.leader()
		m := mapOf(leader)
		proposals := 0
		m.Connect(leader.Keyring, func(_ context.Context, cmd []byte) (any, error) {
			if proposals++; len(cmd) > keyring.MaxCommand {
				t.Errorf("%d bytes are proposed", len(cmd))
			}
			return uint64(1), nil
		})
		half := make([]byte, keyring.MaxCommand/2)
		for what, w := range map[string][]records.Write{
			"two records":    {{Name: "a", Parts: [][]byte{half}}, {Name: "b", Parts: [][]byte{half}}},
			"parts and Meta": {{Name: "a", Meta: half, Parts: [][]byte{half}}},
			"Meta":           {{Name: "a", Meta: make([]byte, keyring.MaxCommand)}},
			"MaxBytes":       {{Name: "a", Parts: [][]byte{make([]byte, records.MaxBytes)}}},
		} {
			if _, err := m.Put(t.Context(), w...); !errors.Is(err, keyring.ErrTooLong) || errors.Is(err, records.ErrUncertain) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if proposals > 0 {
			t.Errorf("%d proposals", proposals)
		}
		if _, err := m.Put(t.Context(), records.Write{Name: "a", Parts: [][]byte{make([]byte, keyring.MaxCommand-1000)}}); err != nil || proposals != 1 {
			t.Errorf("%d proposals, %v", proposals, err)
		}
	})
}

// TestWhatPutTakesCanBeMoved: no part is so long that an entry which moves it to another key is refused.
func TestWhatPutTakesCanBeMoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, justTheMap)
		m := mapOf(c.leader())
		m.Connect(c.leader().Keyring, func(_ context.Context, cmd []byte) (any, error) {
			if cmd[len("?records")] == 's' {
				return 0, nil
			}
			return uint64(1), nil
		})
		for _, name := range []string{"a", strings.Repeat("n", records.MaxName)} {
			taken, refused := 0, 0
			for head := range 80 { // bytes of the entry beside the name and the ciphertext
				part := make([]byte, keyring.MaxCommand-keyring.Overhead-len(name)-head)
				if _, err := m.Put(t.Context(), records.Write{Name: name, Parts: [][]byte{part}}); errors.Is(err, keyring.ErrTooLong) {
					refused++
					continue
				} else if err != nil {
					t.Fatal(err)
				}
				taken++
				moved := keyring.Replacement{Sealed: keyring.Sealed{Ref: name}, New: make([]byte, len(part)+keyring.Overhead)}
				if _, err := m.Replace(t.Context(), []keyring.Replacement{moved}); err != nil {
					t.Errorf("%d bytes are taken, and can't be moved: %v", len(part), err)
				}
			}
			if taken == 0 || refused == 0 {
				t.Errorf("%d taken, %d refused", taken, refused)
			}
		}
	})
}

// TestBoundsOfRecords are checked before anything is proposed, and again in Apply.
func TestBoundsOfRecords(t *testing.T) {
	m := records.New(newFence(t).FSM)
	m.ConnectWithoutKeys(func(context.Context, []byte) (any, error) {
		t.Error("it is proposed")
		return nil, nil
	})
	long := make([]byte, records.MaxBytes)
	for what, w := range map[string]records.Write{
		"no name":                {},
		"a long name":            {Name: strings.Repeat("a", records.MaxName+1)},
		"too many parts":         {Name: "a", Parts: make([][]byte, records.MaxParts+1)},
		"too many bytes":         {Name: "a", Parts: [][]byte{long}},
		"a deletion with a part": {Name: "a", Delete: true, Parts: make([][]byte, 1)},
		"a deletion with Meta":   {Name: "a", Delete: true, Meta: []byte("x")},
	} {
		if _, err := m.Put(t.Context(), w); err == nil {
			t.Errorf("%s is written", what)
		}
		if !w.Delete && m.SetPlain(records.Record{Name: w.Name, Parts: w.Parts}) == nil {
			t.Errorf("%s is set", what)
		}
	}
	if _, err := m.Put(t.Context()); err == nil {
		t.Error("nothing is written")
	}
	if _, err := m.Put(t.Context(), records.Write{Name: "a"}, records.Write{Name: "b"}, records.Write{Name: "a", Delete: true}); err == nil {
		t.Error("one name is written twice")
	}
	log := raftLog{}
	for what, bad := range map[string][]byte{
		"no entries":          encodeCommand('w'),
		"another kind":        encodeCommand('x', []byte{0}),
		"unknown flags":       encodeCommand('w', []byte("\x04\x01a\x00\x00")),
		"no name":             encodeCommand('w', []byte("\x00\x00\x00\x00")),
		"a deletion of Meta":  encodeCommand('w', []byte("\x02\x01a\x01x\x00")),
		"two writes of one":   encodeCommand('w', []byte("\x00\x01a\x00\x00"), []byte("\x00\x01a\x00\x00")),
		"part 64":             encodeCommand('s', append(make([]byte, 0), "\x01a\x40"+strings.Repeat("\x00", 33)...)),
		"something behind it": append(encodeCommand('w', []byte("\x00\x01a\x00\x00")), 0),
	} {
		if err, _ := m.Apply(log.next(bad)).(error); !errors.Is(err, keyring.ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if m.View().Len() != 0 {
		t.Error("something was written")
	}
	full := encodeBytes(encodeBytes([]byte{0}, "a"), string(long[:records.MaxBytes-1-len(ciphertext(1, 1))]))
	full = encodeParts(full, []modelPart{{1, string(ciphertext(1, 1))}})
	if err, failed := m.Apply(log.next(encodeCommand('w', full))).(error); failed {
		t.Fatal(err)
	}
	old := sha256.Sum256(ciphertext(1, 1))
	longer := encodeBytes(append(append(encodeBytes(nil, "a"), 0), old[:]...), string(ciphertext(1, 1))+"x")
	if a := m.Apply(log.next(encodeCommand('s', longer))); a != 1 {
		t.Errorf("a swap beyond the bounds: %v conflicts", a)
	}
}

// TestChangedTellsOfChanges.
func TestChangedTellsOfChanges(t *testing.T) {
	m := records.New(newFence(t).FSM)
	told := func(changed <-chan struct{}) bool {
		select {
		case <-changed:
			return true
		default:
			return false
		}
	}
	for what, change := range map[string]func(){
		"Apply":    func() { m.Apply((&raftLog{}).next(nil)) },
		"SetPlain": func() { m.SetPlain(records.Record{Name: "a"}) },
		"Delete":   func() { m.Delete("a") },
		"Restore":  func() { m.RestoreFrom(bytes.NewReader(section(t, m))) },
	} {
		changed := m.Changed()
		if told(changed) {
			t.Errorf("before %s: it is closed", what)
		}
		if change(); !told(changed) || told(m.Changed()) {
			t.Errorf("%s has not told", what)
		}
	}
}
