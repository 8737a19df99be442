package histories

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

var (
	runTime = flag.Duration("histories.time", 25*time.Second, "how long faults are made")
	runSeed = flag.Uint64("histories.seed", 0, "which faults; zero draws a seed")
)

const (
	paths   = 6
	writers = 8
	pace    = 10 * time.Millisecond // of each writer
)

// TestHistoriesAreLinearizable while processes are killed, stopped and cut off.
func TestHistoriesAreLinearizable(t *testing.T) {
	seed := *runSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-histories.seed %d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), *runTime+3*time.Minute)
	defer cancel()
	r := &run{lab: newLab(t), began: time.Now(), called: make(chan struct{}), made: map[string]int{}, known: map[string]bool{}, retired: map[string]uint64{}}
	for _, h := range r.hosts {
		r.await(ctx, h, func(s status) bool { return s.Ready && s.Leader != "" })
	}
	first := r.await(ctx, r.hosts[0], func(s status) bool { return s.active() != "" }).active()
	r.known[first] = true

	loaded, stop := context.WithCancel(ctx)
	var load sync.WaitGroup
	for w := range writers {
		load.Go(func() { r.write(loaded, w) })
	}
	load.Go(func() { r.rotate(loaded) })
	r.faults(ctx, rand.New(rand.NewPCG(seed, 0)))
	stop()
	load.Wait()

	r.settle(ctx)
	r.check(t, "secrets", r.secrets, "")
	r.check(t, "active", r.active, first)
	r.checkFence(t)
	if len(r.secrets) < 500 || r.rotations.Load() < 10 {
		t.Errorf("%d accesses, %d rotations: that is no load", len(r.secrets), r.rotations.Load())
	}
}

// run is a lab under load, and what its clients have seen.
type run struct {
	*lab
	began     time.Time
	called    chan struct{} // gets one for each call that has had its effect, if anybody waits for it
	rotations atomic.Int64
	made      map[string]int // faults by kind

	// Of rotate, while it runs.
	known   map[string]bool   // keys that are in the history
	retired map[string]uint64 // at which index of the log at the latest, by key
	learned int64             // when the last status was asked for

	mu      sync.Mutex            // guards below
	secrets []porcupine.Operation // accesses of paths
	active  []porcupine.Operation // accesses of which key is active
	stored  []stored
}

// stored is a put: under which key, and at which index of the log.
type stored struct {
	key   string
	index uint64
}

func (r *run) now() int64 { return time.Since(r.began).Nanoseconds() }

// note adds an access to a history.
func (r *run) note(history *[]porcupine.Operation, client int, call, end int64, a access) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*history = append(*history, porcupine.Operation{ClientId: client, Input: a, Call: call, Return: end})
}

// succeeded counts a call.
func (r *run) succeeded() {
	select {
	case r.called <- struct{}{}:
	default:
	}
}

// write puts, gets, and asks which key is active.
func (r *run) write(ctx context.Context, client int) {
	random := rand.New(rand.NewPCG(uint64(client), 1))
	ticks := time.NewTicker(pace)
	defer ticks.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		h := r.hosts[random.IntN(len(r.hosts))]
		switch path := fmt.Sprintf("path/%d", random.IntN(paths)); random.IntN(10) {
		default:
			r.put(h, client, path, fmt.Sprintf("%d.%d", client, n))
		case 6, 7, 8:
			r.get(h, client, path)
		case 9:
			r.ask(h, client)
		}
		<-ticks.C
	}
}

func (r *run) put(h *host, client int, path, value string) {
	var out struct {
		Key     string
		Version uint64
	}
	call := r.now()
	// Not the context of the load: it is to end by itself.
	_, o := r.call(context.Background(), h, http.MethodPut, "/v1/secrets/"+path, map[string]string{"value": value}, &out)
	end := r.now()
	switch o {
	case done:
		r.succeeded()
		r.note(&r.active, client, call, end, access{"active", false, out.Key})
		r.mu.Lock()
		r.stored = append(r.stored, stored{out.Key, out.Version})
		r.mu.Unlock()
	case unknown:
		end = forEver
	case nothing:
		return
	}
	r.note(&r.secrets, client, call, end, access{path, true, value})
}

func (r *run) get(h *host, client int, path string) {
	var out struct{ Value string }
	call := r.now()
	code, o := r.call(context.Background(), h, http.MethodGet, "/v1/secrets/"+path, nil, &out)
	if o == done || code == http.StatusNotFound {
		r.succeeded()
		r.note(&r.secrets, client, call, r.now(), access{path, false, out.Value})
	}
}

func (r *run) ask(h *host, client int) {
	var out status
	call := r.now()
	if _, o := r.call(context.Background(), h, http.MethodGet, "/v1/status?consistent", nil, &out); o == done {
		r.succeeded()
		r.note(&r.active, client, call, r.now(), access{"active", false, out.active()})
	}
}

// rotate rotates without a pause, each third time fully.
func (r *run) rotate(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		var out struct{ ID string }
		call := r.now()
		h := r.hosts[n%len(r.hosts)]
		_, o := r.call(context.Background(), h, http.MethodPost, "/v1/keys", map[string]bool{"full": n%3 == 0}, &out)
		if o != done {
			<-time.After(pace) // nobody leads: it would only burn
			continue
		}
		r.rotations.Add(1)
		r.note(&r.active, writers, call, r.now(), access{"active", true, out.ID})
		r.known[out.ID] = true
		var now status
		asked := r.now()
		if _, o := r.call(context.Background(), h, http.MethodGet, "/v1/status?consistent", nil, &now); o == done {
			r.learn(now, asked)
		}
	}
}

// learn takes from a consistent status, asked for at that time, which keys there are. One that no
// rotation has returned was made by a rotation of unknown outcome, since the status before.
func (r *run) learn(s status, asked int64) {
	for _, k := range s.Keys {
		if k.State == "prepublished" {
			continue
		}
		if !r.known[k.ID] {
			r.known[k.ID] = true
			r.note(&r.active, writers, r.learned, r.now(), access{"active", true, k.ID})
		}
		// Those that are changed no more say when they were retired.
		if _, known := r.retired[k.ID]; !known && k.ID != s.active() {
			r.retired[k.ID] = k.Index
		}
	}
	r.learned = asked
}

// faults makes one after the other, for as long as the run is to take.
func (r *run) faults(ctx context.Context, random *rand.Rand) {
	kinds := []string{"kill", "stop"}
	if r.partition {
		kinds = append(kinds, "cut off")
	}
	for end := time.Now().Add(*runTime); time.Now().Before(end) && ctx.Err() == nil; {
		r.progress(ctx, 100)
		h := r.hosts[random.IntN(len(r.hosts))]
		if random.IntN(3) > 0 {
			if leader := r.leader(ctx); leader != nil {
				h = leader
			}
		}
		kind := kinds[random.IntN(len(kinds))]
		lasts := time.Duration(500+random.IntN(3000)) * time.Millisecond
		switch kind {
		case "kill":
			h.kill()
			<-time.After(lasts)
			r.start(h)
		case "stop":
			h.signal(syscall.SIGSTOP)
			<-time.After(lasts)
			h.signal(syscall.SIGCONT)
		case "cut off":
			r.cut(h, true)
			<-time.After(lasts)
			r.cut(h, false)
		}
		r.made[kind]++
	}
}

// progress waits until so many calls more have had their effect.
func (r *run) progress(ctx context.Context, calls int) {
	for range calls {
		select {
		case <-r.called:
		case <-ctx.Done():
			r.t.Fatal("no call has its effect any more")
		}
	}
}

// settle waits until all servers are well and have the same, and reads all of it once more.
func (r *run) settle(ctx context.Context) {
	r.t.Helper()
	r.t.Logf("faults %v, %d rotations", r.made, r.rotations.Load())
	var last status
	var asked int64
	for last.ID == "" {
		r.await(ctx, r.hosts[0], func(s status) bool { return s.Leader != "" }) // which may be gone already
		asked = r.now()
		r.call(ctx, r.hosts[0], http.MethodGet, "/v1/status?consistent", nil, &last)
	}
	r.learn(last, asked)
	for p := range paths {
		r.get(r.hosts[0], writers+1, fmt.Sprintf("path/%d", p))
	}
	r.ask(r.hosts[0], writers+1)
	for _, h := range r.hosts {
		r.await(ctx, h, func(s status) bool { return s.Ready && len(s.Missing) == 0 && s.Index >= last.Index })
		for p := range paths {
			r.sameOn(h, fmt.Sprintf("path/%d", p))
		}
	}
}

// sameOn compares what a server has at a path with what the leader has.
func (r *run) sameOn(h *host, path string) {
	r.t.Helper()
	var here, there struct {
		Value   string
		Version uint64
	}
	code, _ := r.call(context.Background(), h, http.MethodGet, "/v1/secrets/"+url.PathEscape(path)+"?stale", nil, &here)
	want, o := r.call(context.Background(), h, http.MethodGet, "/v1/secrets/"+path, nil, &there)
	if code != want || here != there || o == unknown {
		r.t.Errorf("%s: %s is %d %+v, and %d %+v on the leader", h.id, path, code, here, want, there)
	}
}

// check looks for an order of a history's accesses that explains it.
func (r *run) check(t *testing.T, name string, history []porcupine.Operation, initial string) {
	t.Helper()
	model := register(initial)
	known, open := bounded(history)
	result, info := porcupine.CheckOperationsVerbose(model, known, time.Minute)
	t.Logf("%s: %d accesses, %d of them of unknown outcome: %v", name, len(history), open, result)
	if result == porcupine.Ok {
		return
	}
	path := filepath.Join(t.ArtifactDir(), name+".html")
	if err := porcupine.VisualizePath(model, info, path); err != nil {
		t.Error(err)
	}
	t.Errorf("%s: %v; with -artifacts, see %s", name, result, path)
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
