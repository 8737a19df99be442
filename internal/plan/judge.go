package plan

import (
	"cmp"
	"slices"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
)

// Answer is what one server said when it was asked, live, which keys it holds: on disk now,
// read back and checked.
type Answer struct {
	Keystore meta.KeystoreID
	Held     []meta.KeyID
}

// Verdict is what the answers about a prepublished key allow.
type Verdict struct {
	Activate  bool          // a majority of the voters hold it; Confirmed are those
	Confirmed []meta.Server // sorted by ID
	Drop      bool          // every server of the configuration has answered, and none has it
	Blocked   bool          // a majority of the voters have answered, and none has it
}

// Judge decides about a prepublished key. answers are those of the servers of the present configuration, given after its
// last change and after the last restore of the FSM; a server that did not answer is absent. An answer counts for the
// activation only if its keystore is the one that is recorded as a holder, for otherwise the ring would refuse it.
//
// It has a key activated only when its time has come.
func Judge(r *meta.Ring, id meta.KeyID, s Situation, answers map[string]Answer) Verdict {
	k := r.Key(id)
	if k == nil || k.State != meta.StatePrepublished {
		return Verdict{}
	}
	var v Verdict
	var answered []string
	nobody := true
	for _, server := range s.Servers {
		a, ok := answers[server]
		if !ok {
			continue
		}
		answered = append(answered, server)
		if !slices.Contains(a.Held, id) {
			continue
		}
		nobody = false
		recorded, ok := r.Keystore(server)
		if ok && recorded == a.Keystore && k.HeldBy(server) && slices.Contains(s.Voters, server) {
			v.Confirmed = append(v.Confirmed, meta.Server{ID: server, Keystore: a.Keystore})
		}
	}
	slices.SortFunc(v.Confirmed, func(a, b meta.Server) int { return cmp.Compare(a.ID, b.ID) })
	v.Activate = len(v.Confirmed) > len(s.Voters)/2 && !DueAt(r, k, s.Policy).After(s.Now) &&
		!(k.Scheduled && r.Active() != nil && s.Clocks.Wrong())
	v.Drop = nobody && len(answered) == len(s.Servers) && len(answered) > 0
	v.Blocked = nobody && Majority(s.Voters, answered)
	return v
}

// Confirmed reports whether, going by the answers, a majority of the voters holds the key.
func Confirmed(id meta.KeyID, voters []string, answers map[string]Answer) bool {
	return Majority(voters, HoldersIn(answers, id))
}

// HoldersIn returns the servers whose answer names the key, sorted.
func HoldersIn(answers map[string]Answer, id meta.KeyID) []string {
	var servers []string
	for server, a := range answers {
		if slices.Contains(a.Held, id) {
			servers = append(servers, server)
		}
	}
	slices.Sort(servers)
	return servers
}

// Again returns the probe to remember when the verdict led to nothing: the next question waits longer each time, until
// the key's holders change.
func (p Probe) Again(k *meta.Key, v Verdict, now mono.Time, jitter float64) Probe {
	attempts := p.Attempts
	if p.Index != k.ModifyIndex {
		attempts = 0
	}
	return Probe{
		Attempts: attempts + 1,
		Index:    k.ModifyIndex,
		Next:     now.Add(Backoff(attempts, jitter)),
		Blocked:  v.Blocked,
	}
}

// IsNeeded reports whether something may be sealed under a key, now or soon: a prepublished key that most of the present
// voters hold can become active at any time. Any other prepublished key is not needed: nothing is lost with it, and
// its activation will need a majority of the voters at that time.
func IsNeeded(k *meta.Key, voters []string) bool { return k.Sealed() || Majority(voters, k.Holders) }

// Needed returns the keys that are needed: see IsNeeded.
func Needed(r *meta.Ring, voters []string) []*meta.Key {
	return slices.DeleteFunc(slices.Clone(r.Keys), func(k *meta.Key) bool { return !IsNeeded(k, voters) })
}

// Unsafe returns the needed keys that, by the answers, no majority of the new voters holds. A change of voters is safe if
// there are none, for then every quorum of the new voters has a holder of each key.
func Unsafe(r *meta.Ring, present, voters []string, answers map[string]Answer) []meta.KeyID {
	count := map[meta.KeyID]int{}
	for _, v := range voters {
		told := map[meta.KeyID]bool{} // an answer that repeats itself counts once
		for _, id := range answers[v].Held {
			if !told[id] {
				told[id] = true
				count[id]++
			}
		}
	}
	var ids []meta.KeyID
	for _, k := range Needed(r, present) {
		if count[k.ID] <= len(voters)/2 {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

// Backoff is how long to wait after an attempt, the first of which is number zero: 100 ms, doubling up to a minute, less
// up to a half by jitter in [0, 1).
func Backoff(attempt int, jitter float64) time.Duration {
	const first, most = 100 * time.Millisecond, time.Minute
	d := most
	if attempt < 10 {
		d = min(most, first<<attempt)
	}
	return d - time.Duration(jitter*float64(d/2))
}
