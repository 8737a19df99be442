package attacks

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// liar answers in place of the fourth member: it says that it holds every key, and hands out others.
type liar struct {
	c        *cluster
	t        *testing.T
	port     *peer.Port
	server   *peer.Server
	cluster  [16]byte
	keystore peer.ID

	mu    sync.Mutex // guards below
	gave  int        // answers with wrong keys
	asked map[peer.ID]int
}

// newLiar answers from now on.
func newLiar(t *testing.T, c *cluster) *liar {
	t.Helper()
	l := &liar{c: c, t: t, cluster: c.honest[0].ring(t).Cluster, keystore: peer.ID{9, 9, 9}, asked: map[peer.ID]int{}}
	conf, err := peer.ServerConfig(c.source(string(stolen)), clusterName, func(peer.Identity, string) error { return nil }, peer.ALPNPeer)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", c.fourth.addr)
	if err != nil {
		t.Fatal(err)
	}
	l.port = peer.Listen(ln, peer.PortOptions{TLS: conf})
	l.server = peer.Serve(l.port.Listener(peer.ALPNPeer), l.serve, peer.ServerOptions{})
	t.Cleanup(func() { l.server.Close(); l.port.Close() })
	return l
}

func (l *liar) serve(_ context.Context, from peer.Identity, path string, body []byte) ([]byte, error) {
	q, err := peer.DecodeRequest(body)
	if err != nil || path != "/keyring" {
		return nil, &peer.Refusal{Code: peer.BadRequest}
	}
	switch {
	case q.Ask != nil:
		return l.held(q.Ask.IDs...)
	case q.Offer != nil:
		return l.held(q.Offer.ID)
	case q.Fetch != nil:
		return l.wrong(from, body, q.Fetch.IDs)
	case q.Hello != nil:
		return peer.Response{Hello: &peer.HelloAnswer{Build: meta.Version, Keystore: l.keystore}}.Encode()
	}
	return nil, &peer.Refusal{Code: peer.Unsupported}
}

// held is that it holds all of that.
func (l *liar) held(ids ...peer.ID) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		l.asked[id]++
	}
	return peer.Response{Ask: &peer.AskAnswer{Keystore: l.keystore, Held: ids}}.Encode()
}

// wrong has keys of the right ID and, as it says, the right check value: first some that are well-formed,
// then some that are not, then some sealed for somebody else.
func (l *liar) wrong(from peer.Identity, request []byte, ids []peer.ID) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var keys []peer.Secret
	for _, id := range ids {
		m, err := nks.Generate("EdDSA")
		if err != nil {
			return nil, err
		}
		s := peer.Secret{ID: id, Material: m.Encode()}
		if k := l.c.honest[0].ring(l.t).Key(meta.KeyID(id)); k != nil {
			s.Check = peer.Check(k.Check)
		}
		if l.gave%3 == 1 {
			s.Material = s.Material[:20]
		}
		keys = append(keys, s)
	}
	b := peer.Binding{Cluster: l.cluster, Asker: from.ID, Answerer: string(stolen)}
	if l.gave%3 == 2 {
		b.Asker = "s9"
	}
	answer, err := peer.SealKeys(b, request, keys)
	if err != nil {
		return nil, err
	}
	l.gave++
	return peer.Response{Fetch: answer}.Encode()
}

// report tells the leader that it holds every key there is.
func (l *liar) report(t *testing.T) {
	t.Helper()
	hold := &peer.HoldRequest{Keystore: l.keystore}
	for _, k := range l.c.honest[0].ring(t).Keys {
		hold.Gained = append(hold.Gained, peer.ID(k.ID))
	}
	leader := l.c.leader(t)
	line := l.c.dialAs(t, l.c.conf(t, string(stolen)), leader)
	defer line.Close()
	code, answer, err := line.post("/keyring", encode(t, peer.Request{Hold: hold}))
	if err != nil || code != 200 {
		t.Fatalf("%d %q %v", code, answer, err)
	}
}

// lies has a member that says it holds everything, and hands out wrong keys. It has joined without
// being able to write a key, so that it is no voter at first.
func (c *cluster) lies(t *testing.T) {
	l := newLiar(t, c)
	t.Run("is not believed about keys", l.isNotBelieved)
	t.Run("has one vote", l.hasOneVote)
	t.Run("does not stand in for those that held a key", l.doesNotStandIn)
	t.Run("has it all along", func(t *testing.T) {
		c.under(t, again(l.report))
	})
}

// isNotBelieved takes the active key from two servers and stops the third, so that the liar is the only
// one to be asked that answers.
func (l *liar) isNotBelieved(t *testing.T) {
	c := l.c
	active := c.honest[0].status(t).Active
	robbed, holder := c.honest[:2], c.honest[2]
	for _, p := range robbed {
		p.kill()
		l.rob(t, p, active)
	}
	signal(t, holder, syscall.SIGSTOP)
	for _, p := range robbed {
		c.start(p, map[raft.ServerID]string{p.id: p.addr}, false)
	}
	for _, p := range robbed {
		c.await(t, "the liar is asked, and reported", func() bool {
			return slices.ContainsFunc(p.status(t).Problems, func(p keyring.Problem) bool {
				return p.Kind == keyring.ProblemUnreachable && p.Server == stolen && strings.Contains(p.Detail, "s4")
			})
		})
	}
	c.await(t, "it has given keys that are wrong in each way", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.gave >= 3
	})
	for _, p := range robbed {
		if s := p.status(t); !slices.Contains(s.Missing, active) || s.Ready {
			t.Errorf("%s has taken a key of the liar's: missing %v", p.id, s.Missing)
		}
	}
	began := time.Now()
	signal(t, holder, syscall.SIGCONT)
	c.settle(t)
	t.Logf("all hold the key %v after the one that has it answers", time.Since(began).Round(time.Millisecond))
}

// rob deletes the file of a key.
func (l *liar) rob(t *testing.T, p *process, id keyring.KeyID) {
	t.Helper()
	if err := os.Remove(filepath.Join(l.c.dir, string(p.id), "keystore", id.String()+".nks.json")); err != nil {
		t.Fatal(err)
	}
}

func signal(t *testing.T, p *process, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// hasOneVote has the liar say that it holds all keys, by which it becomes a voter, and no more. With two
// of the other three unable to hold a new key, that key is not activated; with one of them it is.
func (l *liar) hasOneVote(t *testing.T) {
	c := l.c
	l.report(t)
	c.await(t, "the liar is a voter", func() bool {
		return slices.ContainsFunc(c.leader(t).status(t).Servers, func(s raft.Server) bool {
			return s.ID == stolen && s.Suffrage == raft.Voter
		})
	})
	c.settle(t)
	leader := c.leader(t)
	var followers []*process
	for _, p := range c.honest {
		if p != leader {
			followers = append(followers, p)
			p.must(t, "Away", true, nil)
		}
	}
	was := leader.status(t).Active
	go leader.call("Rotate", nil, new(keyring.KeyID)) // whose outcome is looked for in the ring
	var id meta.KeyID
	c.await(t, "there is a new key", func() bool {
		for _, k := range leader.ring(t).Keys {
			if k.State == meta.StatePrepublished {
				id = k.ID
			}
		}
		return id != (meta.KeyID{})
	})
	l.report(t)
	asked := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.asked[peer.ID(id)]
	}
	c.await(t, "the liar is a recorded holder", func() bool { return leader.ring(t).Key(id).HeldBy(string(stolen)) })
	before := asked()
	c.await(t, "it is asked again", func() bool { return asked() > before })
	if s := leader.status(t); s.Active != was {
		t.Fatalf("key %s became active with two of four holders", s.Active)
	}
	followers[0].must(t, "Away", false, nil)
	c.await(t, "three of four are a majority", func() bool { return leader.status(t).Active == keyring.KeyID(id) })
	followers[1].must(t, "Away", false, nil)
	c.settle(t)
	leader.must(t, "Rotate", nil, new(keyring.KeyID))
	c.settle(t)
}

// doesNotStandIn has a key that all are recorded to hold, and that two of them lose before it is due:
// who holds it is asked then, and the liar has one vote of the four still.
func (l *liar) doesNotStandIn(t *testing.T) {
	c := l.c
	leader := c.leader(t)
	was := leader.status(t).Active
	var id keyring.KeyID
	leader.must(t, "Prepublish", 3*time.Second, &id)
	l.report(t)
	c.await(t, "all are recorded as holders", func() bool {
		return c.held(leader.ring(t).Key(meta.KeyID(id))) && leader.ring(t).Key(meta.KeyID(id)).HeldBy(string(stolen))
	})
	for _, p := range c.honest {
		if p != leader {
			p.must(t, "Away", true, nil)
			l.rob(t, p, id)
		}
	}
	c.await(t, "the leader says why it waits", func() bool {
		s := leader.status(t)
		return s.Active != was || slices.ContainsFunc(s.Problems, func(p keyring.Problem) bool {
			return p.Kind == keyring.ProblemKeyPending && strings.HasPrefix(p.Detail, "2 servers hold it")
		})
	})
	if s := leader.status(t); s.Active != was {
		t.Errorf("key %s became active with two of four holders", s.Active)
	}
	for _, p := range c.honest {
		p.must(t, "Away", false, nil)
	}
	c.await(t, "the key is held again, and active", func() bool { return leader.status(t).Active == id })
	c.settle(t)
}
