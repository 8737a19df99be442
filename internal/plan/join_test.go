package plan_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// The rules about join tokens, searched through every order of a few events. A thief has all that a
// server knew at the moment of its removal, the secrets of the tokens of that moment among it, and
// keeps its certificate. The ring and the decisions are the real ones; raft is a list of entries, and what is
// restored is any earlier snapshot.
//
//	servers   1 is a member, and is stolen; 2 is to join
//	tokens    made for either, one at a time
//	time      hours; each token is for two

// joinWorld is one state of the search. It is never changed: see do.
type joinWorld struct {
	ring     *meta.Ring
	member   [3]bool
	hour     int
	snapshot *meta.Ring          // an earlier one, or nil
	restored plan.SnapshotTokens // what the leader has from a snapshot alone
	knows    []meta.TokenID      // the thief
	ended    []meta.TokenID      // withdrawn, or over, at some time
	used     map[byte]string     // the certificates that have joined with a token, by its number
	stolen   bool
	made     byte
	past     string // what happened, for the report
	bad      string // what must not be
}

// joinRules are the rules, each of which can be left out.
type joinRules struct{ removal, time, restore, binding bool }

func (w joinWorld) key() string {
	var b bytes.Buffer
	if err := meta.This.EncodeRing(&b, w.ring); err != nil {
		panic(err)
	}
	if w.snapshot != nil {
		if err := meta.This.EncodeRing(&b, w.snapshot); err != nil {
			panic(err)
		}
	}
	fmt.Fprint(&b, w.member, w.hour, w.restored, w.knows, w.ended, w.used, w.stolen, w.made)
	return b.String()
}

func joinStart(t *testing.T) joinWorld {
	t.Helper()
	ring := &meta.Ring{}
	for i, cmds := range [][]meta.Command{
		{{Init: &meta.Init{Cluster: meta.ClusterID{1}}}},
		{{Add: &meta.Add{Key: meta.NewKey{ID: meta.KeyID{1}, Algorithm: "EdDSA", Public: []byte{1}, Check: meta.CheckValue{1}, Created: hour(0)}}}},
		{{Hold: &meta.Hold{Server: "0", Keystore: meta.KeystoreID{1}, Gained: []meta.KeyID{{1}}}}},
		{{Activate: &meta.Activate{ID: meta.KeyID{1}, Voters: []string{"0"}, Confirmed: []meta.Server{{ID: "0", Keystore: meta.KeystoreID{1}}}, Time: hour(0)}}},
	} {
		next, err := ring.Apply(uint64(i+1), cmds)
		if err != nil {
			t.Fatal(err)
		}
		ring = next
	}
	return joinWorld{ring: ring, member: [3]bool{true, true, false}, used: map[byte]string{}}
}

func hour(n int) time.Time { return time.Date(2026, 1, 1, n, 0, 0, 0, time.UTC) }

// apply is one log entry, which may be refused.
func (w *joinWorld) apply(c meta.Command) bool {
	next, err := w.ring.Apply(100, []meta.Command{c})
	if err == nil {
		w.ring = next
	}
	return err == nil
}

func (w *joinWorld) end(all bool, ids ...meta.TokenID) {
	if all {
		ids = nil
		for _, t := range w.ring.JoinTokens {
			ids = append(ids, t.ID)
		}
	}
	if len(ids) == 0 {
		return
	}
	w.apply(meta.Command{EndJoinTokens: &meta.EndJoinTokens{IDs: ids}})
	for _, id := range ids {
		if !slices.Contains(w.ended, id) {
			w.ended = append(slices.Clone(w.ended), id)
		}
	}
}

// steps returns every world that may come next.
func (w joinWorld) steps(r joinRules) []joinWorld {
	var next []joinWorld
	do := func(what string, can bool, change func(*joinWorld)) {
		if can {
			n := w
			n.past += what + "; "
			change(&n)
			next = append(next, n)
		}
	}
	for s := byte(1); s <= 2; s++ {
		do(fmt.Sprintf("make a token for %d", s), w.made < 2, func(n *joinWorld) {
			n.made++
			n.apply(meta.Command{AddJoinToken: &meta.AddJoinToken{Token: meta.JoinToken{
				ID: meta.TokenID{n.made}, Server: fmt.Sprint(s), End: hour(n.hour + 2), Key: meta.KeyID{1}, Sealed: make([]byte, meta.SealedTokenSize),
			}}})
		})
		for _, cert := range []byte{1, 2} { // its own, and one that somebody else has had issued
			for t := byte(1); t <= w.made; t++ {
				do(fmt.Sprintf("%d joins with token %d and certificate %d", s, t, cert), !w.member[s], func(n *joinWorld) { n.join(r, s, t, cert) })
			}
		}
	}
	do("1 is stolen and removed", w.member[1] && !w.stolen, func(n *joinWorld) { n.remove(r) })
	do("an hour", w.hour < 3, func(n *joinWorld) { n.hour++ })
	do("the clock is set back", w.hour == 3, func(n *joinWorld) { n.hour = 0 })
	do("the leader looks", true, func(n *joinWorld) {
		ended, _ := plan.EndedTokens(n.ring, n.now(r), n.restored)
		n.end(false, ended...)
	})
	do("a token is withdrawn", len(w.ring.JoinTokens) > 0, func(n *joinWorld) { n.end(false, n.ring.JoinTokens[0].ID) })
	do("a snapshot is made", w.snapshot == nil, func(n *joinWorld) { n.snapshot = n.ring })
	do("it is restored", w.snapshot != nil, func(n *joinWorld) {
		n.ring, n.restored = n.snapshot, nil
		if r.restore {
			for _, t := range n.ring.JoinTokens {
				n.restored = append(n.restored, t.ID)
			}
		}
	})
	return next
}

func (w *joinWorld) now(r joinRules) time.Time {
	if !r.time {
		return hour(-1000)
	}
	return hour(w.hour)
}

// remove removes server 1, whose thief knows the secrets of the tokens of that moment.
func (w *joinWorld) remove(r joinRules) {
	for _, t := range w.ring.JoinTokens {
		w.knows = append(slices.Clone(w.knows), t.ID)
	}
	if r.removal {
		w.end(true)
	}
	w.member[1], w.stolen = false, true
}

// join has a server ask. The stolen one asks with what its thief knows; the other with its token; the
// server with the second certificate has copied the token from the other.
func (w *joinWorld) join(r joinRules, server, token, cert byte) {
	id := meta.TokenID{token}
	user := meta.Digest{cert}
	name := fmt.Sprint(server)
	if plan.JoinRefusal(w.ring, id, name, user, w.now(r), w.restored) != "" {
		return
	}
	if !r.binding { // as if it were never recorded
		user = meta.Digest{1}
	}
	if !w.apply(meta.Command{UseJoinToken: &meta.UseJoinToken{ID: id, Server: name, User: user}}) {
		return
	}
	theirs := fmt.Sprint(cert)
	switch {
	case server == 1 && w.stolen && slices.Contains(w.knows, id):
		w.bad = "the stolen server is a member again by a token that it knew"
	case slices.Contains(w.ended, id):
		w.bad = "a token let somebody in after its end"
	case w.over(id):
		w.bad = "a token let somebody in after its time"
	case w.used[token] != "" && w.used[token] != theirs:
		w.bad = "two certificates have joined with one token"
	}
	used := map[byte]string{token: theirs}
	for t, c := range w.used {
		if t != token {
			used[t] = c
		}
	}
	w.used = used
}

func (w *joinWorld) over(id meta.TokenID) bool {
	t := w.ring.JoinToken(id)
	return t != nil && !hour(w.hour).Before(t.End)
}

// searchJoins returns the first state that must not be, or nothing.
func searchJoins(t *testing.T, r joinRules, depth int) (bad joinWorld, states int) {
	t.Helper()
	queue := []joinWorld{joinStart(t)}
	seen := map[string]bool{}
	for range depth {
		var next []joinWorld
		for _, w := range queue {
			for _, n := range w.steps(r) {
				if n.bad != "" {
					return n, len(seen)
				}
				if k := n.key(); !seen[k] {
					seen[k] = true
					next = append(next, n)
				}
			}
		}
		queue = next
	}
	return joinWorld{}, len(seen)
}

// TestEveryOrderOfJoins finds no order of events in which a token admits a server that it must not, and finds one as
// soon as a rule is left out.
func TestEveryOrderOfJoins(t *testing.T) {
	all := joinRules{removal: true, time: true, restore: true, binding: true}
	bad, states := searchJoins(t, all, 7)
	if bad.bad != "" {
		t.Fatalf("%s: %s", bad.past, bad.bad)
	}
	if states < 1000 {
		t.Errorf("only %d states", states)
	}
	for name, without := range map[string]joinRules{
		"the end with a removal": {time: true, restore: true, binding: true},
		"the end with its time":  {removal: true, restore: true, binding: true},
		"the end with a restore": {removal: true, time: true, binding: true},
		"one certificate":        {removal: true, time: true, restore: true},
	} {
		if bad, states := searchJoins(t, without, 7); bad.bad == "" {
			t.Errorf("without %s nothing is found in %d states", name, states)
		} else {
			t.Logf("without %s: %s: %s", name, bad.past, bad.bad)
		}
	}
}
