package keyringtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Drill is what a process does with a directory of the real file system. Run has another
// process do it under strace again and again, with every one of its system calls the last
// one and every one of them failed.
type Drill struct {
	Name string
	// Prepare makes dir, or only what is above it, as an earlier process left it.
	Prepare func(t *testing.T, dir string)
	// Do is the other process. Whatever fails, it goes on as a server would.
	Do func(p *Pin, dir string)
	// Skip are calls that are neither killed nor failed.
	Skip []string
	// Check is how the next process finds dir, and what the one before had said.
	Check func(t *testing.T, dir, when string, said []string)
}

// ways are what becomes of a system call.
var ways = []string{"signal=SIGKILL", "error=EIO", "error=ENOSPC", "error=EROFS", "error=EMFILE", "error=EINTR"}

// harmless are the system calls that have nothing to do with files: the Go runtime's. strace may
// show exit_group, which the main thread makes, for those that it ends too.
var harmless = regexp.MustCompile(`^(futex|m(map|unmap|advise|protect)|rt_sig.*|sigaltstack|sched_.*|nanosleep|clock_.*|` +
	`clone3?|rseq|set_robust_list|gettid|getpid|tgkill|geteuid|getrandom|prctl|epoll_p?wait.*|exit(_group)?)$`)

// job is what the other process is to do: Do once for each run, in a thread of its own, whose
// When-th call of that kind strace fails. That it is the Nth of Do is brought about by calls
// that come to nothing before.
type job struct {
	Drill, Call string
	When        int
	Runs        []run
}

type run struct {
	Nth int
	Dir string
}

// onNames are those that only the main thread, which starts, makes beside the one of the run.
var onNames = map[string]bool{
	"openat": true, "newfstatat": true, "renameat": true, "unlinkat": true, "mkdirat": true, "getdents64": true, "fsync": true,
}

// once are the calls that are not made again when a signal has interrupted them.
var once = []string{"fsync", "close", "renameat", "newfstatat"}

const (
	jobEnv = "KEYRINGTEST_DRILL"
	marker = "/nowhere/begin-" // looked for where Do begins
)

// target is one kind of system call.
type target struct {
	call  string
	calls int // that a run makes
	other int // that another thread makes, at most: when the process starts, for one
}

// Run goes through all system calls of the drill. TestMain must call Drilled.
func (d Drill) Run(t *testing.T) {
	if out, err := exec.Command("strace", "-o", "/dev/null", "true").CombinedOutput(); err != nil {
		if os.Getenv("CI") != "" {
			t.Errorf("strace: %v: %s", err, out)
		}
		t.Logf("nothing tested: there is no strace, or it may not trace: %v", err)
		return
	}
	targets, done := d.enumerate(t)
	if t.Failed() {
		return
	}
	total := 0
	for _, target := range targets {
		total += target.calls
		for _, way := range ways {
			t.Run(target.call+"/"+way, func(t *testing.T) {
				t.Parallel()
				d.each(t, target, way, done)
			})
		}
	}
	t.Logf("%d system calls, each killed and failed with %d errors: %v", total, len(ways)-1, targets)
}

// enumerate counts the calls of a run without a fault, and what it says to be done.
func (d Drill) enumerate(t *testing.T) (targets []target, done int) {
	t.Helper()
	r := d.prepare(t, 0)
	j := job{Runs: []run{r}}
	said, traces := d.undisturbed(t, j, "trace=all")
	d.Check(t, j.Runs[0].Dir, "without a fault", said[0])
	calls, other := map[string]int{}, map[string]int{}
	for _, thread := range traces {
		before, after, is := strings.Cut(thread, marker)
		for call, n := range count(before) {
			other[call] = max(other[call], n)
			if !is && !strings.Contains(thread, "execve(") && onNames[call] {
				t.Errorf("a thread that is not looked at makes %s: %s", call, thread)
			}
		}
		for call, n := range count(after) {
			calls[call] += n // there is one
		}
	}
	for _, call := range slices.Sorted(maps.Keys(calls)) {
		if harmless.MatchString(call) || slices.Contains(d.Skip, call) {
			continue
		}
		if idle[call] == nil {
			t.Errorf("%s is not among the calls that can be failed", call)
		}
		if call == "write" {
			other[call] += wakeUps
		}
		targets = append(targets, target{call, calls[call], other[call]})
	}
	return targets, doneOf(said[0])
}

// count counts the calls of each kind.
func count(trace string) map[string]int {
	n := map[string]int{}
	for line := range strings.Lines(trace) {
		if call := callOf(line); call != "" {
			n[call]++
		}
	}
	return n
}

// each kills or fails the calls of one kind, all in turn. The dead have a process each.
func (d Drill) each(t *testing.T, at target, way string, done int) {
	j := job{Call: at.call, When: at.other + at.calls}
	for n := range at.calls {
		j.Runs = append(j.Runs, d.prepare(t, n+1))
	}
	jobs := []job{j}
	trace := []string{"trace=" + at.call + ",faccessat"}
	if at.call == "fsync" {
		trace[0] += ",close"
	}
	if strings.HasPrefix(way, "signal") {
		jobs = nil
		for _, r := range j.Runs {
			jobs = append(jobs, job{Call: at.call, When: at.other + r.Nth, Runs: []run{r}})
		}
	} else { // faster, but then strace sends no signals
		trace = append(trace, "--seccomp-bpf")
	}
	for _, j := range jobs {
		said, traces := d.undisturbed(t, j, append(trace, fmt.Sprintf("--inject=%s:%s:when=%d", at.call, way, j.When))...)
		for i, r := range j.Runs {
			when := fmt.Sprintf("%s %d %s", at.call, r.Nth, way)
			checkTrace(t, when, traceOf(traces, i), at.call, r.Nth)
			if got := doneOf(said[i]); way == "error=EINTR" && !slices.Contains(once, at.call) && got != done {
				t.Errorf("%s: it is done %d times, not %d: %q", when, got, done, said[i])
			}
			d.Check(t, r.Dir, when, said[i])
		}
	}
}

// doneOf counts what was said to be done.
func doneOf(said []string) (n int) {
	for _, s := range said {
		if strings.HasPrefix(s, "done ") {
			n++
		}
	}
	return n
}

func (d Drill) prepare(t *testing.T, nth int) run {
	t.Helper()
	dir := filepath.Join(memoryDir(t), "keystore")
	d.Prepare(t, dir)
	return run{nth, dir}
}

// memoryDir is in a file system in memory if there is one: what a loss of power leaves is
// the simulated disk's subject, and here nobody waits for a sync.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "drill")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// wakeUps are more than other threads make in a job. wakeUp is one, or what the woken thread makes: the runtime wakes the thread
// that waits for its timers, from any thread, by a write to an eventfd, at times of its own.
const wakeUps = 128

var wakeUp = regexp.MustCompile(`(?m)^(read|write)\([0-9]+, "\\1(\\0){7}", 8\)`)

// undisturbed is strace, once more where the runtime has made calls in the thread of a run: the nth of that kind is another one
// then. It gives a run a thread that has waited for timers before, where one is idle.
func (d Drill) undisturbed(t *testing.T, j job, args ...string) (said [][]string, traces []string) {
	t.Helper()
	for range 20 {
		said, traces = d.strace(t, j, args...)
		if !j.disturbed(traces) {
			return said, traces
		}
		for i, r := range j.Runs {
			j.Runs[i] = d.prepare(t, r.Nth)
		}
	}
	t.Fatal("the runtime makes calls in each run")
	return nil, nil
}

// disturbed reports whether the thread of a run has made other calls than those of the run and the ones that bring about which
// is failed.
func (j job) disturbed(traces []string) bool {
	for i, r := range j.Runs {
		begin := fmt.Sprintf("%s%d\"", marker, i)
		at := slices.IndexFunc(traces, func(trace string) bool { return strings.Contains(trace, begin) })
		if at < 0 || wakeUp.MatchString(traces[at]) {
			return true
		}
		before, _, _ := strings.Cut(traces[at], begin)
		if j.Call != "" && count(before)[j.Call] != j.When-r.Nth {
			return true
		}
	}
	return false
}

// strace has another process do a job. It returns what each run said, and what strace wrote
// about each thread.
func (d Drill) strace(t *testing.T, j job, args ...string) (said [][]string, traces []string) {
	t.Helper()
	dir := t.TempDir()
	report, err := os.Create(filepath.Join(dir, "said"))
	if err != nil {
		t.Fatal(err)
	}
	defer report.Close()
	j.Drill = d.Name
	b, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"-e"}, append(args, "-ff", "-o", filepath.Join(dir, "trace"), os.Args[0])...)
	cmd := exec.Command("strace", args...)
	cmd.ExtraFiles = []*os.File{report}
	cmd.Env = append(os.Environ(), jobEnv+"="+string(b), "GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1",
		"GORACE=atexit_sleep_ms=0", "MALLOC_ARENA_MAX=1") // else the C library counts the processors now and then
	out, err := cmd.CombinedOutput()
	if killed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &killed) || len(out) > 0 {
		t.Fatalf("%v: %v: %s", cmd.Args, err, out)
	}
	said = make([][]string, len(j.Runs))
	for line := range strings.Lines(contents(t, report.Name())[0]) {
		n, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		i, err := strconv.Atoi(n)
		if err != nil {
			t.Fatalf("it said %q", line)
		}
		said[i] = append(said[i], what)
	}
	return said, contents(t, filepath.Join(dir, "trace.*"))
}

func contents(t *testing.T, pattern string) (all []string) {
	t.Helper()
	files, _ := filepath.Glob(pattern)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(b))
	}
	if all == nil {
		t.Fatalf("there is no %s", pattern)
	}
	return all
}

// traceOf returns the lines of run i: those after its marker.
func traceOf(traces []string, i int) (lines []string) {
	for _, trace := range traces {
		if _, after, ok := strings.Cut(trace, fmt.Sprintf("%s%d\"", marker, i)); ok {
			return strings.Split(after, "\n")[1:]
		}
	}
	return nil
}

var (
	callPattern = regexp.MustCompile(`^([a-z0-9_]+)\(`)
	onFD        = regexp.MustCompile(`^(fsync|close)\(([0-9]+)\)`)
)

func callOf(line string) string {
	if m := callPattern.FindStringSubmatch(line); m != nil {
		return m[1]
	}
	return ""
}

// checkTrace wants the nth call of a run, and no other, to have been killed or failed, and no
// descriptor to be synced again after its sync has failed.
func checkTrace(t *testing.T, when string, trace []string, call string, nth int) {
	t.Helper()
	hit := 0
	failed := map[string]bool{}
	for i, line := range trace {
		if callOf(line) == call {
			nth--
		}
		injected := strings.Contains(line, "(INJECTED)")
		killed := i+1 < len(trace) && strings.Contains(trace[i+1], "killed by SIGKILL")
		if injected || killed {
			if hit++; nth != 0 || callOf(line) != call {
				t.Errorf("%s: hit %s", when, line)
			}
		}
		if m := onFD.FindStringSubmatch(line); m != nil {
			if m[1] != "close" && failed[m[2]] {
				t.Errorf("%s: a failed sync was repeated: %s", when, line)
			}
			failed[m[2]] = m[1] != "close" && strings.Contains(line, " = -1 ")
		}
	}
	if hit != 1 {
		t.Errorf("%s: hit %d times, not once:\n%s", when, hit, strings.Join(trace, "\n"))
	}
}
