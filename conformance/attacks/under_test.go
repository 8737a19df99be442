package attacks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/meta"
)

// What an attack may cost.
const (
	// A server has its caps full of connections, each with its buffers of TLS's and net/http's, and
	// bodies of a mebibyte in some of them; garbage comes on top, as it can't be used elsewhere either.
	moreMemory = 64 // MiB

	// Members' own connections come and go: each server has a few to each other, of raft's and of
	// calls, with two goroutines each. A crowd that stayed would be some hundreds.
	moreGoroutines  = 24
	moreDescriptors = 8
	recoverWithin   = 5 * time.Second

	// How long a call may wait, for a leader may be elected meanwhile: a busy machine is enough for that.
	callWithin = 5 * time.Second

	rotations = 5   // of which the median counts: one that meets an election does not
	slower    = 2.0 // than before or after the attack, whichever is slower, a rotation may be
)

// attack attacks the cluster, and has the rotations done while it does. When it returns, the attacker
// has gone.
type attack func(t *testing.T, rotations func())

// once is an attack that takes its time, and beside which the rotations are done.
func once(act func(t *testing.T)) attack {
	return func(t *testing.T, rotations func()) {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(rotations)
		act(t)
	}
}

// again is an attack that is over soon, and is made again and again until the rotations are done. The
// pauses leave the machine to the servers.
func again(act func(t *testing.T)) attack {
	const pause = 100 * time.Millisecond
	return func(t *testing.T, rotations func()) {
		done := make(chan struct{})
		defer func() { <-done }()
		go func() {
			defer close(done)
			rotations()
		}()
		for {
			act(t)
			select {
			case <-done:
				return
			case <-time.After(pause):
			}
		}
	}
}

// under runs an attack while the cluster serves, and holds the cluster against how it was before.
func (c *cluster) under(t *testing.T, a attack) {
	t.Helper()
	c.underFor(t, callWithin, a)
}

// underFor is under if calls may take longer meanwhile.
func (c *cluster) underFor(t *testing.T, longest time.Duration, a attack) {
	t.Helper()
	c.table = append(c.table, c.measure(t, longest, a))
}

// pace is how much slower rotations were, in the median of all attacks: one of them takes some tens of
// milliseconds, and what else the machine does, the attacker included, is in the figures of each.
func (c *cluster) pace() float64 {
	var ratios []float64
	for _, f := range c.table {
		ratios = append(ratios, f.ratio())
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// figures are what an attack has cost.
type figures struct {
	name                    string
	lasted, back            time.Duration
	memory                  int           // MiB, of the server with most
	goroutines, descriptors int           // more than before, when all was back, of the server with most
	call, longest           time.Duration // the median
	calm, during            rotated
}

func (f figures) ratio() float64 { return float64(f.during.median) / float64(f.calm.median) }

func (f figures) String() string {
	round := func(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
	return fmt.Sprintf("%-58s %8v %+4d MiB  back in %7v (%+3d, %+3d)  calls %8v, longest %9v  rotations %8v calm %8v: %.2f, longest %9v",
		f.name, f.lasted.Round(time.Millisecond), f.memory, f.back.Round(time.Millisecond), f.goroutines, f.descriptors,
		round(f.call), round(f.longest), f.during.median, f.calm.median, f.ratio(), round(f.during.longest))
}

// measure runs an attack once.
func (c *cluster) measure(t *testing.T, longest time.Duration, a attack) (f figures) {
	t.Helper()
	_, f.name, _ = strings.Cut(t.Name(), "/")
	c.settle(t)
	before, used, logged := c.facts(t), map[*process]usage{}, map[*process]int{}
	load := c.serve()
	defer load.stop(t, longest, &f)
	if c.calm.median == 0 {
		c.calm = c.rotations(t)
	} else {
		c.calm.made = nil // the ring has them
	}
	for _, p := range c.honest {
		p.resetPeak(t)
		used[p], logged[p] = p.usage(t), len(p.log.since(0))
	}
	began := time.Now()
	a(t, func() { f.during = c.rotations(t) })
	f.lasted = time.Since(began)
	for _, p := range c.honest {
		if !p.running() {
			t.Fatalf("%s has died: %s", p.id, head(p.log.since(logged[p])))
		}
		f.memory = max(f.memory, p.memory(t, "VmHWM")-used[p].memory)
	}
	if f.memory > moreMemory && !*serverRace {
		t.Errorf("resident memory grew by %d MiB, at most %d are fine", f.memory, moreMemory)
	}
	c.recovers(t, used, &f)
	after := c.rotations(t)
	c.settle(t)
	before.same(t, c.facts(t), slices.Concat(c.calm.made, f.during.made, after.made))
	for p, n := range logged {
		if s := p.log.since(n); strings.Contains(s, "panic") || strings.Contains(s, "DATA RACE") {
			t.Errorf("%s: %s", p.id, head(s[max(0, strings.Index(s, "panic")-200):]))
		}
	}
	f.calm = c.calm
	if c.calm = after; after.median > f.calm.median {
		f.calm = after
	}
	return f
}

func head(s string) string { return s[:min(len(s), 4000)] }

// rotated is how long rotations took, and what they made.
type rotated struct {
	median, longest time.Duration
	made            []keyring.KeyID
}

// rotations has every server asked in turn.
func (c *cluster) rotations(t *testing.T) (r rotated) {
	t.Helper()
	var took []time.Duration
	for i := range rotations {
		var id keyring.KeyID
		began := time.Now()
		err := c.honest[i%len(c.honest)].call("Rotate", nil, &id)
		for err != nil && time.Since(began) < callTime { // a leader is elected, or raft is held up: that time counts
			r.made = append(r.made, keyring.KeyID{}) // it may have made one
			err = c.honest[i%len(c.honest)].call("Rotate", nil, &id)
		}
		if err != nil {
			t.Errorf("rotate: %v", err)
		}
		took, r.made = append(took, time.Since(began)), append(r.made, id)
	}
	slices.Sort(took)
	r.median, r.longest = took[len(took)/2].Round(10*time.Microsecond), took[len(took)-1]
	return r
}

// facts are what an attack must not change.
type facts struct {
	term    uint64
	servers string // raft's configuration
	ring    *meta.Ring
}

// facts waits until all honest servers have the same ring: what follows a rotation takes its time.
func (c *cluster) facts(t *testing.T) (f facts) {
	t.Helper()
	c.leader(t).must(t, "Term", nil, &f.term)
	c.await(t, "all honest servers hold all keys, and have the same ring", func() bool {
		var first []byte
		for i, p := range c.honest {
			var section []byte
			if p.must(t, "Ring", nil, &section); i == 0 {
				first = section
			}
			if string(first) != string(section) {
				return false
			}
		}
		f.ring = c.honest[0].ring(t)
		return !slices.ContainsFunc(f.ring.Keys, func(k *meta.Key) bool { return !c.held(k) })
	})
	f.servers = fmt.Sprint(c.honest[0].status(t).Servers)
	return f
}

// held reports whether the honest servers are recorded as holders.
func (c *cluster) held(k *meta.Key) bool {
	return !slices.ContainsFunc(c.honest, func(p *process) bool { return !k.HeldBy(string(p.id)) })
}

// same complains about everything that has changed, but for the keys that rotations made.
func (f facts) same(t *testing.T, after facts, made []keyring.KeyID) {
	t.Helper()
	if after.term >= attackTerm {
		t.Errorf("term %d has become %d, which is the attacker's", f.term, after.term)
	} else if after.term > f.term {
		t.Logf("term %d has become %d", f.term, after.term) // a busy machine is enough for that
	}
	if f.servers != after.servers {
		t.Errorf("configuration %s has become %s", f.servers, after.servers)
	}
	if f.ring.Cluster != after.ring.Cluster || len(after.ring.Removed) > len(f.ring.Removed) {
		t.Errorf("the cluster has become %v, and %d keys were removed", after.ring.Cluster, len(after.ring.Removed)-len(f.ring.Removed))
	}
	for _, s := range f.ring.Servers {
		if now, _ := after.ring.Keystore(s.ID); now != s.Keystore && s.ID != string(stolen) {
			t.Errorf("%s has another keystore", s.ID)
		}
	}
	unknown := 0 // of which the rotation was not told whether it made them
	for _, id := range made {
		if id == (keyring.KeyID{}) {
			unknown++
		}
	}
	left := unknown
	for _, k := range after.ring.Keys {
		if f.ring.Key(k.ID) != nil || slices.Contains(made, keyring.KeyID(k.ID)) {
			continue
		}
		if left--; left < 0 {
			t.Errorf("key %s is nobody's", k.ID)
		}
	}
	for _, k := range f.ring.Keys {
		if now := after.ring.Key(k.ID); now == nil {
			t.Errorf("key %s is gone", k.ID)
		} else if old := k.State == meta.StateActive && len(made) > 0; unlike(k, now) || now.State != k.State && !(old && now.State == meta.StateInactive) {
			t.Errorf("key %s was %+v and is %+v", k.ID, k, now)
		}
	}
	if active := after.ring.Active(); active == nil || len(made) > 0 && unknown == 0 && keyring.KeyID(active.ID) != made[len(made)-1] {
		t.Errorf("key %v is active, the last one made is another", active)
	}
}

// unlike reports whether what a key came with has changed.
func unlike(a, b *meta.Key) bool {
	return a.Check != b.Check || string(a.Public) != string(b.Public) || a.Algorithm != b.Algorithm ||
		!a.Created.Equal(b.Created) || a.Revoked != b.Revoked || a.DataOnly != b.DataOnly || a.Remove != b.Remove
}

// usage is what a server uses of its machine.
type usage struct{ goroutines, descriptors, memory int }

func (p *process) usage(t *testing.T) (u usage) {
	t.Helper()
	p.must(t, "Goroutines", nil, &u.goroutines)
	files, err := os.ReadDir(p.proc("fd"))
	if err != nil {
		t.Fatal(err)
	}
	u.descriptors, u.memory = len(files), p.memory(t, "VmRSS")
	return u
}

func (p *process) proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), name)
}

// memory reads a line of the process's status, in MiB: VmRSS is what is resident, VmHWM the most that
// was since resetPeak.
func (p *process) memory(t *testing.T, line string) int {
	t.Helper()
	b, err := os.ReadFile(p.proc("status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), line+":")
	kib, err := strconv.Atoi(strings.Fields(rest + " ?")[0])
	if err != nil {
		t.Fatalf("%s of %s: %v", line, p.id, err)
	}
	return kib >> 10
}

func (p *process) resetPeak(t *testing.T) {
	t.Helper()
	p.must(t, "Rest", nil, nil)
	if err := os.WriteFile(p.proc("clear_refs"), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// recovers waits until the servers use no more than before.
func (c *cluster) recovers(t *testing.T, before map[*process]usage, f *figures) {
	t.Helper()
	began := time.Now()
	for {
		var errs []error
		f.goroutines, f.descriptors = 0, 0
		for _, p := range c.honest {
			u, was := p.usage(t), before[p]
			f.goroutines = max(f.goroutines, u.goroutines-was.goroutines)
			f.descriptors = max(f.descriptors, u.descriptors-was.descriptors)
			if u.goroutines > was.goroutines+moreGoroutines || u.descriptors > was.descriptors+moreDescriptors {
				errs = append(errs, fmt.Errorf("%s: %d goroutines and %d descriptors, before %d and %d",
					p.id, u.goroutines, u.descriptors, was.goroutines, was.descriptors))
			}
		}
		if f.back = time.Since(began); len(errs) == 0 {
			return
		}
		if f.back > recoverWithin {
			t.Error(errors.Join(errs...))
			return
		}
		<-time.After(50 * time.Millisecond)
	}
}

// load is calls to every server, all along.
type load struct {
	end  chan struct{}
	wg   sync.WaitGroup
	mu   sync.Mutex // guards below
	errs []error
	took []time.Duration
}

// serve seals on each server in turn, and opens what it has got.
func (c *cluster) serve() *load {
	l := &load{end: make(chan struct{})}
	l.wg.Go(func() { l.write(c.honest) })
	for _, p := range c.honest {
		l.wg.Go(func() {
			ticks := time.NewTicker(20 * time.Millisecond)
			defer ticks.Stop()
			for {
				l.seal(p)
				select {
				case <-l.end:
					return
				case <-ticks.C:
				}
			}
		})
	}
	return l
}

// write has raft commit something: sealing needs no more than a leader.
func (l *load) write(honest []*process) {
	began := time.Now()
	for {
		for _, p := range honest {
			if p.call("Term", nil, new(uint64)) == nil { // it leads
				l.note(time.Since(began), nil)
				began = time.Now()
			}
		}
		select {
		case <-l.end:
			l.note(time.Since(began), nil)
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (l *load) seal(p *process) {
	began := time.Now()
	var ciphertext, plaintext []byte
	err := p.call("Encrypt", []byte("plaintext"), &ciphertext)
	took := time.Since(began)
	if err == nil {
		err = p.call("Decrypt", ciphertext, &plaintext)
		for err != nil && strings.Contains(err.Error(), "unknown key") && time.Since(began) < callWithin {
			err = p.call("Decrypt", ciphertext, &plaintext) // the key has just become active, and p follows
		}
		if err == nil && string(plaintext) != "plaintext" {
			err = fmt.Errorf("%s: opens to %q", p.id, plaintext)
		}
	}
	l.note(took, err)
}

func (l *load) note(took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.took = append(l.took, took); err != nil && len(l.errs) < 10 {
		l.errs = append(l.errs, err)
	}
}

// stop ends the calls, none of which may have taken longer than that.
func (l *load) stop(t *testing.T, longest time.Duration, f *figures) {
	t.Helper()
	close(l.end)
	l.wg.Wait()
	slices.Sort(l.took)
	f.call, f.longest = l.took[len(l.took)/2], l.took[len(l.took)-1]
	if len(l.errs) > 0 || f.longest > longest {
		t.Errorf("calls failed or took up to %v, at most %v are fine: %v", f.longest, longest, errors.Join(l.errs...))
	}
}
