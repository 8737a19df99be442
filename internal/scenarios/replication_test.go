package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// TestI9LostKeyDelaysNoOther loses the first key in order on every server, for good.
func TestI9LostKeyDelaysNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		v := keyringtest.Vault{TB: t}
		keyringtest.Rotate(t, c, &v, 10)
		keyringtest.AwaitKeys(t, c)
		keys := c.Leader().Keyring.Keys()
		active := keys[0].ID
		slices.SortFunc(keys, func(a, b keyring.Key) int { return bytes.Compare(a.ID[:], b.ID[:]) })
		lost := keys[0].ID
		if lost == active {
			lost = keys[1].ID
		}
		for _, s := range c.Servers {
			c.Stop(s)
			s.Disk.Plant(nks.FileName(lost), 0o600, []byte("lost"))
		}
		for _, s := range c.Servers {
			c.Restart(s)
		}
		keyringtest.Ready(t, c)
		fresh := c.Add("s4")
		if err := fresh.Keyring.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // virtual
		for _, s := range c.Servers {
			st, _ := s.Keyring.Status(t.Context())
			if len(st.Missing) != 1 || st.Missing[0] != lost {
				t.Errorf("%s: missing %v, want only %s", s.ID, st.Missing, lost)
			}
			if n := len(keyringtest.Problems(t, s, keyring.ProblemKeyMissing)); n != 1 {
				t.Errorf("%s: %d problems about missing keys", s.ID, n)
			}
		}
		for _, sealed := range v.Sealed {
			id, _ := keyring.CiphertextKeyID(sealed)
			_, err := fresh.Keyring.Decrypt(sealed, []byte("aad"))
			if id == lost && !errors.Is(err, keyring.ErrKeyMissing) || id != lost && err != nil {
				t.Errorf("record under %s: %v", id, err)
			}
		}
	})
}

// badAnswers are the ways in which a server answers a fetch and gives no key that is right.
var badAnswers = []struct {
	name  string
	reply func(*keyringtest.Cluster, keyringtest.Event) keyringtest.Reply
	tells bool // Status has it as a problem
}{
	{"error", func(*keyringtest.Cluster, keyringtest.Event) keyringtest.Reply {
		return keyringtest.Reply{Err: errors.New("no route to host")}
	}, true},
	{"hangs", func(*keyringtest.Cluster, keyringtest.Event) keyringtest.Reply {
		return keyringtest.Reply{Hang: true}
	}, true},
	{"empty", func(*keyringtest.Cluster, keyringtest.Event) keyringtest.Reply {
		return keyringtest.Reply{Data: []byte{}}
	}, true},
	{"garbage", func(*keyringtest.Cluster, keyringtest.Event) keyringtest.Reply {
		return keyringtest.Reply{Data: []byte(`{"version":1,"fetch":{"enc":"AAAA"}}`)}
	}, true},
	{"not ready", func(*keyringtest.Cluster, keyringtest.Event) keyringtest.Reply {
		return keyringtest.Reply{Data: encode(peer.Response{Refusal: &peer.Refusal{Code: peer.NotReady}})}
	}, true},
	{"answer to another question", func(*keyringtest.Cluster, keyringtest.Event) keyringtest.Reply {
		return keyringtest.Reply{Data: encode(peer.Response{Hold: &peer.HoldAnswer{}})}
	}, true},
	{"has no key", func(c *keyringtest.Cluster, e keyringtest.Event) keyringtest.Reply {
		return forge(c, e, func(peer.ID) *nks.Material { return nil })
	}, false},
	{"another key under that ID", func(c *keyringtest.Cluster, e keyringtest.Event) keyringtest.Reply {
		return forge(c, e, func(peer.ID) *nks.Material {
			m, err := nks.Generate("EdDSA")
			if err != nil {
				panic(err)
			}
			return m
		})
	}, true},
}

func encode(r peer.Response) []byte {
	b, err := r.Encode()
	if err != nil {
		panic(err)
	}
	return b
}

// TestI6BadAnswersOnlyMoveOnToTheNextPeer gives a joining server a first source that answers
// in every wrong way.
func TestI6BadAnswersOnlyMoveOnToTheNextPeer(t *testing.T) {
	t.Parallel()
	for _, tt := range badAnswers {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
				leader := keyringtest.Ready(t, c)
				v := keyringtest.Vault{TB: t}
				keyringtest.Rotate(t, c, &v, 3)
				keyringtest.AwaitKeys(t, c)
				var asked atomic.Int64
				c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
					if keyringtest.IsFetch(e, "s4") && e.To == leader.ID {
						asked.Add(1)
						return tt.reply(c, e)
					}
					return keyringtest.Reply{}
				})
				fresh := c.Add("s4")
				start := time.Now()
				keyringtest.AwaitKeys(t, c)
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("the keys came after %v", took)
				}
				if asked.Load() == 0 {
					t.Error("the leader was not asked first")
				}
				time.Sleep(10 * time.Second) // virtual: it is asked again
				if told := len(keyringtest.Problems(t, fresh, keyring.ProblemUnreachable)) > 0; told != tt.tells {
					t.Errorf("Status tells of the leader: %v, want %v", told, tt.tells)
				}
				v.Check(c)
			})
		})
	}
}

// forge answers a fetch, in place of the peer it is for, with material of its own choice.
func forge(c *keyringtest.Cluster, e keyringtest.Event, choose func(peer.ID) *nks.Material) keyringtest.Reply {
	q, err := peer.DecodeRequest([]byte(e.What))
	if err != nil {
		panic(err)
	}
	ring := keyringtest.Ring(e.Server.FSM)
	var secrets []peer.Secret
	for _, id := range q.Fetch.IDs {
		if m := choose(id); m != nil {
			secrets = append(secrets, peer.Secret{ID: id, Check: peer.Check(ring.Key(meta.KeyID(id)).Check), Material: m.Encode()})
		}
	}
	b := peer.Binding{Cluster: ring.Cluster, Asker: string(e.Server.ID), Answerer: string(e.To)}
	answer, err := peer.SealKeys(b, []byte(e.What), secrets)
	if err != nil {
		panic(err)
	}
	data, err := peer.Response{Fetch: answer}.Encode()
	if err != nil {
		panic(err)
	}
	return keyringtest.Reply{Data: data}
}

// TestReplicationSurvivesARestore restores a snapshot while a follower is fetching what came
// after it, and what is in it.
func TestReplicationSurvivesARestore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		v := keyringtest.Vault{TB: t}
		keyringtest.Rotate(t, c, &v, 3)
		keyringtest.AwaitKeys(t, c)
		snap := leader.Raft.Snapshot()
		if err := snap.Error(); err != nil {
			t.Fatal(err)
		}
		fresh := c.Add("s4")
		hung := make(chan struct{})
		var once atomic.Bool
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if keyringtest.IsFetch(e, "s4") && once.CompareAndSwap(false, true) {
				close(hung)
				return keyringtest.Reply{Hang: true}
			}
			return keyringtest.Reply{}
		})
		keyringtest.Rotate(t, c, &v, 1) // after the snapshot; lost with the restore, but not its file
		<-hung
		meta, rc, err := snap.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		if err := leader.Raft.Restore(meta, rc, time.Minute); err != nil {
			t.Fatal(err)
		}
		v.Sealed = v.Sealed[:3]
		keyringtest.AwaitKeys(t, c)
		if n := len(fresh.Keyring.Keys()); n != 4 {
			t.Errorf("%d keys after the restore, want 4", n)
		}
		v.Check(c)
		keyringtest.CheckOneActive(t, c)
		for _, s := range c.Live() {
			if st := keyringtest.StatusOf(t, s); len(st.Orphans) > 1 {
				t.Errorf("%s: orphans %v", s.ID, st.Orphans)
			}
		}
		keyringtest.Rotate(t, c, &v, 1)
		keyringtest.AwaitKeys(t, c)
		v.Check(c)
	})
}

// TestJoinerStartsFromASnapshot gives a joining server a log that begins with a snapshot.
func TestJoinerStartsFromASnapshot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Raft: func(c *raft.Config) { c.TrailingLogs = 1 }})
		keyringtest.Ready(t, c)
		v := keyringtest.Vault{TB: t}
		keyringtest.Rotate(t, c, &v, 5)
		if err := c.Leader().Raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		fresh := c.Add("s4")
		keyringtest.AwaitKeys(t, c)
		if i := fresh.Raft.Stats()["last_snapshot_index"]; i == "0" {
			t.Error("the joiner got no snapshot")
		}
		v.Check(c)
	})
}

// TestKeystoresWithoutMetadataAreAdopted starts a new raft on the key files of an old one.
func TestKeystoresWithoutMetadataAreAdopted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		old := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, old)
		v := keyringtest.Vault{TB: t}
		keyringtest.Rotate(t, old, &v, 3)
		keyringtest.AwaitKeys(t, old)
		old.Close()
		for _, survivors := range []int{3, 1} {
			c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Disk: func(id raft.ServerID) *keyringtest.Disk {
				if s := old.Server(id); id >= "s3" || survivors == 3 {
					return s.Disk.Crash(keyringtest.Dropped, 0)
				}
				return keyringtest.NewDisk()
			}})
			keyringtest.Ready(t, c)
			keyringtest.AwaitKeys(t, c)
			again := keyringtest.Vault{TB: t, Sealed: slices.Clone(v.Sealed)}
			if err := again.Seal(c.Leader()); err != nil {
				t.Fatal(err)
			}
			again.Check(c)
			keyringtest.CheckOneActive(t, c)
			k := c.Leader().Keyring
			if n := len(k.Keys()); n != 5 {
				t.Errorf("%d keys, want 4 adopted and a new one", n)
			}
			c.Close()
		}
	})
}

// TestFirstCommandWaitsForEveryServer holds one server's answer back: a build that does not
// know the keyring's entries would panic on the first.
func TestFirstCommandWaitsForEveryServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var answers atomic.Bool
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			cfg.Transport = silent{cfg.Transport, s.ID, &answers}
		}})
		leader := c.Leader()
		time.Sleep(time.Hour) // virtual
		for _, s := range c.Servers {
			if n := len(keyringtest.Ring(s.FSM).Keys); n > 0 || keyringtest.Ring(s.FSM).Cluster != [16]byte{} {
				t.Errorf("%s has applied a command", s.ID)
			}
		}
		if leader.ID != "s3" {
			waits := keyringtest.Problems(t, leader, keyring.ProblemWaiting)
			if len(waits) != 1 || waits[0].Server != "s3" {
				t.Errorf("Status waits for %v", waits)
			}
		}
		answers.Store(true)
		keyringtest.Ready(t, c)
		if w := keyringtest.Problems(t, c.Leader(), keyring.ProblemWaiting); len(w) > 0 {
			t.Errorf("Status still waits for %v", w)
		}
	})
}

// silent is a Transport on which s3 says no hello, and hears none, until it is let.
type silent struct {
	keyring.Transport
	from    raft.ServerID
	answers *atomic.Bool
}

func (s silent) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	q, err := peer.DecodeRequest(request)
	if err == nil && q.Hello != nil && (to == "s3" || s.from == "s3") && !s.answers.Load() {
		return nil, errors.New("connection refused")
	}
	return s.Transport.Call(ctx, to, request)
}

// TestFailedOfferIsMadeGoodAtOnce lets the fetch behind an offer fail after the key has come
// into the ring: replication takes over, and does not sleep on.
func TestFailedOfferIsMadeGoodAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		var first atomic.Int64
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Kind == "call" && strings.Contains(e.What, `"fetch"`) && first.Add(1) <= 2 {
				return keyringtest.Reply{Hang: true}
			}
			return keyringtest.Reply{}
		})
		begin := time.Now() // virtual
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		// The rotation needs one of the two fetches that hang, for 2 s each, to be made again.
		if took := time.Since(begin); took > 2100*time.Millisecond {
			t.Errorf("the key came after %v", took)
		}
		keyringtest.AwaitKeys(t, c)
		if first.Load() < 3 {
			t.Error("no fetch was made again")
		}
	})
}

// TestFileThatIsGoneIsWrittenAgain once somebody has asked for its key. That it is gone and back, raft
// learns from this server alone.
func TestFileThatIsGoneIsWrittenAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		time.Sleep(time.Minute) // virtual
		s := keyringtest.Follower(c)
		id := leader.Keyring.Keys()[0].ID
		name := nks.FileName(id)
		before := s.Disk.Bytes(name)
		index := s.Raft.LastIndex()
		s.Disk.Unlink(name)
		if err := leader.Keyring.CheckMembers(t.Context(), []raft.ServerID{"s1", "s2", "s3"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // virtual
		if after := s.Disk.Bytes(name); before == nil || after == nil {
			t.Errorf("files of %d and %d bytes", len(before), len(after))
		}
		if !keyringtest.Ring(leader.FSM).Key(meta.KeyID(id)).HeldBy(string(s.ID)) {
			t.Error("its file is back, and it is not held")
		}
		if s.Raft.LastIndex() > index+2 { // that it was lost, and that it is back
			t.Errorf("%d entries", s.Raft.LastIndex()-index)
		}
	})
}

// TestFileThatTurnsUpIsReported without a peer, a restart or a change in raft.
func TestFileThatTurnsUpIsReported(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1})
		s := keyringtest.Ready(t, c)
		id := s.Keyring.Keys()[0].ID
		name := nks.FileName(id)
		file := s.Disk.Bytes(name)
		c.Stop(s)
		s.Disk.Unlink(name)
		c.Restart(s)
		time.Sleep(10 * time.Minute) // virtual
		if keyringtest.Ring(s.FSM).Key(meta.KeyID(id)).HeldBy("s1") {
			t.Fatal("a key without a file is held")
		}
		s.Disk.Plant(name, 0o600, file)
		time.Sleep(10 * time.Minute) // virtual
		if !keyringtest.Ring(s.FSM).Key(meta.KeyID(id)).HeldBy("s1") {
			t.Error("its file is back, and it is not held")
		}
	})
}
