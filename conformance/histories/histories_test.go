package histories

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"github.com/anishathalye/porcupine"
)

var (
	runTime    = flag.Duration("histories.time", 15*time.Second, "how long faults are made")
	runSeed    = flag.Uint64("histories.seed", 0, "which faults; zero draws a seed")
	runServers = flag.Int("histories.servers", 3, "how many servers there are, three to five")
	runRace    = flag.Bool("histories.race", false, "build the servers with the race detector")
)

// TestHistoriesAreLinearizable while processes are killed and stopped, and their network fails.
func TestHistoriesAreLinearizable(t *testing.T) {
	t.Parallel()
	seed := *runSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-histories.seed %d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), *runTime+15*time.Minute)
	defer cancel()
	r := newRun(ctx, t)
	unload := r.load(ctx, true)
	r.faults(ctx, rand.New(rand.NewPCG(seed, 0)))
	unload()
	r.settle(ctx)
	r.finish(ctx)
	if len(r.secrets) < 300 || r.rotations.Load() < 10 {
		t.Errorf("%d accesses, %d rotations: that is no load", len(r.secrets), r.rotations.Load())
	}
}

// TestNetworkFaultsConverge has each kind of fault hit the leader. Meanwhile the others rotate; after
// it every server has everything, without anybody's help.
func TestNetworkFaultsConverge(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	r := newRun(ctx, t)
	for _, f := range r.possible() {
		t.Run(f.kind, func(t *testing.T) {
			r.lab.t = t
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			r.converges(ctx, f)
		})
	}
	r.lab.t = t
	r.finish(ctx)
}

// converges makes a fault on the leader, under load, and has another server rotate before it ends.
func (r *run) converges(ctx context.Context, f fault) {
	r.t.Helper()
	unload := r.load(ctx, false)
	h := r.leader(ctx)
	for h == nil && ctx.Err() == nil {
		h = r.leader(ctx)
	}
	end := f.begin(r.lab, h, rand.New(rand.NewPCG(0, 0)))
	rotated := false
	for n := 0; !rotated && ctx.Err() == nil; n++ {
		if other := r.hosts[n%len(r.hosts)]; other != h {
			rotated = r.rotateOnce(other, n == 0)
		}
	}
	if !rotated {
		r.t.Error("no rotation while it lasts")
	}
	end()
	r.progress(ctx, 20)
	unload()
	r.settle(ctx)
}

// faults makes some after the other, for as long as the run is to take: each on hosts of which the others
// are a majority.
func (r *run) faults(ctx context.Context, random *rand.Rand) {
	for end := time.Now().Add(*runTime); time.Now().Before(end) && ctx.Err() == nil; {
		r.progress(ctx, 50)
		r.sound()
		kinds := r.possible()
		if !r.whole(ctx) { // else too few could be left that hold a key, or an entry of the log
			kinds = slices.DeleteFunc(kinds, func(f fault) bool { return f.kind == wiping })
		}
		hosts := random.Perm(len(r.hosts))[:1+random.IntN((len(r.hosts)-1)/2)]
		if leader := r.leader(ctx); leader != nil && random.IntN(3) > 0 {
			hosts = []int{r.place(leader)} // alone
		}
		var ends []func()
		for _, i := range hosts {
			f := kinds[random.IntN(len(kinds))]
			r.made[f.kind]++
			ends = append(ends, f.begin(r.lab, r.hosts[i], random))
		}
		<-time.After(time.Duration(500+random.IntN(3000)) * time.Millisecond)
		for _, end := range ends {
			end()
		}
	}
}

func (r *run) place(h *host) int {
	for i := range r.hosts {
		if r.hosts[i] == h {
			return i
		}
	}
	return -1
}

// sound fails the test at once if a server has shown that the program is broken.
func (r *run) sound() {
	r.t.Helper()
	for _, h := range r.hosts {
		if bad := h.log.trouble(); bad != "" {
			r.t.Fatalf("%s: %s: %s", h.id, bad, h.log.tail())
		}
	}
}

const stuck = time.Minute // without a call that has its effect

// progress waits until so many calls more have had their effect.
func (r *run) progress(ctx context.Context, calls int) {
	r.t.Helper()
	late := time.NewTimer(stuck)
	defer late.Stop()
	for range calls {
		select {
		case <-r.called:
			continue
		case <-ctx.Done():
		case <-late.C:
		}
		r.t.Log(r.tails())
		r.t.Fatalf("no call has its effect any more, after %v", r.made)
	}
}

// tails is what all servers have logged last.
func (r *run) tails() string {
	var all []string
	for _, h := range r.hosts {
		all = append(all, fmt.Sprintf("%s:\n%s", h.id, h.log.tail()))
	}
	return strings.Join(all, "\n")
}

// whole reports whether each server that was wiped votes again. The leader says so, but only once
// the server itself has started: until it has asked to join, it is the voter that it was.
func (r *run) whole(ctx context.Context) bool {
	for h := range r.wiped {
		var own, leader status
		if _, o := r.call(ctx, h, http.MethodGet, "/v1/status", nil, &own); o != done || !own.Ready || len(own.Missing) > 0 {
			return false
		}
		if _, o := r.call(ctx, h, http.MethodGet, "/v1/status?consistent", nil, &leader); o != done {
			return false
		}
		if !slices.Contains(leader.Voters, h.id) {
			return false
		}
		delete(r.wiped, h)
	}
	return true
}

// settle waits until all servers are well and have the same, and reads all of it once more: I5 and I9.
func (r *run) settle(ctx context.Context) {
	r.t.Helper()
	for !r.whole(ctx) {
		if ctx.Err() != nil {
			r.t.Fatalf("%d servers do not vote again: %s", len(r.wiped), r.tails())
		}
		<-time.After(pace)
	}
	last := r.consult(ctx)
	r.settled = last.Index
	all := r.paths()
	for _, path := range all {
		r.get(r.hosts[0], writers+1, path)
	}
	r.ask(r.hosts[0], writers+1)
	r.consult(ctx) // a rotation of unknown outcome may have ended in between
	for _, h := range r.hosts {
		r.await(ctx, h, func(s status) bool { return s.Ready && len(s.Missing) == 0 && s.Index >= last.Index })
		for _, path := range all {
			r.sameOn(ctx, h, path)
		}
	}
}

// consult learns from a consistent status.
func (r *run) consult(ctx context.Context) (s status) {
	r.t.Helper()
	for s.ID == "" && ctx.Err() == nil {
		r.await(ctx, r.hosts[0], func(s status) bool { return s.Leader != "" }) // which may be gone already
		asked := r.now()
		if _, o := r.call(ctx, r.hosts[0], http.MethodGet, "/v1/status?consistent", nil, &s); o == done {
			r.learn(s, asked)
		}
	}
	return s
}

// sameOn waits until a server has the same at a path as the leader. It may have to: what a client has
// given up, a put or a full rotation, may come to its end only now.
func (r *run) sameOn(ctx context.Context, h *host, path string) {
	r.t.Helper()
	type secret struct {
		Value   string
		Version uint64
	}
	for late := time.Now().Add(stuck); ; {
		var here, there secret
		code, _ := r.call(ctx, h, http.MethodGet, "/v1/secrets/"+path+"?stale", nil, &here)
		want, _ := r.call(ctx, h, http.MethodGet, "/v1/secrets/"+path, nil, &there)
		known := want == http.StatusOK || want == http.StatusNotFound
		if known && code == want && here == there {
			return
		}
		if time.Now().After(late) || ctx.Err() != nil {
			r.t.Fatalf("%s: %s is %d %+v, and %d %+v on the leader", h.id, path, code, here, want, there)
		}
		<-time.After(pace)
	}
}

// finish ends the servers, and looks at what clients have seen and at what the servers leave behind.
func (r *run) finish(ctx context.Context) {
	t := r.t
	t.Helper()
	t.Logf("faults %v, %d rotations, %d removals", r.made, r.rotations.Load(), r.removals)
	r.check(t, "secrets", []([]porcupine.Operation){r.secrets}, "")
	r.check(t, "active", windows(r.active, window), r.first)
	r.checkFence(t)
	r.terminate(ctx)
	r.sound()
	for _, contradiction := range r.witness.contradictions() {
		t.Error(contradiction)
	}
	for _, h := range r.hosts {
		if kinds := r.examine(h); kinds[keyring.FileTemp] > 0 || kinds[keyring.FileKey] == 0 {
			t.Errorf("I8: %s has been started again and has ended, and leaves %v", h.id, kinds)
		}
		r.must(r.program, "inspect", "-kek", filepath.Join(r.dir, h.id+".kek"), r.keystore(h))
	}
	r.checkSecret(t)
	r.checkReplays(t, r.settled)
}

// terminate ends the servers with SIGTERM: I10, as far as it is seen from outside.
func (r *run) terminate(ctx context.Context) {
	r.t.Helper()
	ended := make(chan error)
	for _, h := range r.hosts {
		go func() {
			if err := h.terminate(); err != nil {
				err = fmt.Errorf("I10: %s: %w: %s", h.id, err, h.log.tail())
				ended <- err
				return
			}
			ended <- nil
		}()
	}
	for range r.hosts {
		if err := <-ended; err != nil {
			r.t.Error(err)
		}
	}
}

// check looks for an order of each part of a history that explains it. The first begins with the
// initial value; what the others begin with is not known.
func (r *run) check(t *testing.T, name string, parts [][]porcupine.Operation, initial string) {
	t.Helper()
	for i, part := range parts {
		if i > 0 {
			initial = anything
		}
		model := register(initial)
		known, open := bounded(part)
		result, info := porcupine.CheckOperationsVerbose(model, known, 10*time.Minute)
		t.Logf("%s, part %d of %d: %d accesses, %d of them of unknown outcome: %v", name, i+1, len(parts), len(part), open, result)
		if result == porcupine.Ok {
			continue
		}
		path := filepath.Join(t.ArtifactDir(), fmt.Sprintf("%s-%d.html", name, i+1))
		if err := porcupine.VisualizePath(model, info, path); err != nil {
			t.Error(err)
		}
		t.Errorf("%s: %v; with -artifacts, see %s", name, result, path)
	}
}

// checkFence looks for what was sealed before a rotation and stored after it. No client sees the
// difference by the clock, for its call has begun before: the log's own order tells.
func (r *run) checkFence(t *testing.T) {
	late := 0
	for _, s := range r.stored {
		if at, retired := r.retired[s.key]; retired && s.index > at {
			late++
		}
	}
	if t.Logf("%d puts, %d retired keys", len(r.stored), len(r.retired)); late > 0 {
		t.Errorf("%d of %d secrets were stored under a key that was retired before", late, len(r.stored))
	}
}
