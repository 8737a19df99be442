package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// TestMain is the program itself where a drill asks for it, and age where a page does.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); strings.HasPrefix(name, "age") {
		if err := ageTool(name, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv("CONTROLPLANE") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// drill is a cluster of three processes, and what their users have put.
type drill struct {
	t       *testing.T
	ctx     context.Context
	dir     string
	flags   []string // of serve
	cluster cluster
	running map[raft.ServerID]*exec.Cmd
	secrets map[string]string
}

// newDrill starts three servers, and puts secrets under two keys.
func newDrill(t *testing.T, flags ...string) *drill {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	d := &drill{t: t, ctx: ctx, dir: initialized(t, 3), flags: flags, running: map[raft.ServerID]*exec.Cmd{}, secrets: map[string]string{}}
	t.Cleanup(d.kill)
	var err error
	if d.cluster, err = readCluster(d.dir); err != nil {
		t.Fatal(err)
	}
	d.serve("s1", "s2", "s3")
	for i := range 20 {
		if i == 10 {
			d.command("s1", "", "keys", "rotate")
		}
		path, value := fmt.Sprint("app/", i), fmt.Sprint("secret ", i)
		d.put(path, value)
		d.secrets[path] = value
	}
	return d
}

// put puts a secret, again once there is a leader if there was none: servers that share two cores may hear too late from theirs.
func (d *drill) put(path, value string) {
	d.t.Helper()
	for {
		out, err := d.try("s1", value, "put", path)
		if err == nil {
			return
		}
		if !strings.Contains(out, "no leader is known") {
			d.t.Fatalf("put %s: %v: %s", path, err, out)
		}
		d.await("s1", "led", func(st status) bool { return st.Leader != "" })
	}
}

// process is the program with arguments.
func (d *drill) process(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(d.ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), "CONTROLPLANE=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}

// serve starts servers and waits until each is whole.
func (d *drill) serve(ids ...raft.ServerID) {
	d.t.Helper()
	for _, id := range ids {
		d.start(id)
	}
	for _, id := range ids {
		d.await(id, "whole", func(st status) bool { return st.Ready && st.Leader != "" && len(st.Missing) == 0 })
	}
}

// start starts a server and waits until it listens.
func (d *drill) start(id raft.ServerID) {
	d.t.Helper()
	cmd := d.process(slices.Concat([]string{"serve"}, d.flags, []string{d.dir, string(id)})...)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		d.t.Fatalf("%s did not start: %v: %s", id, cmd.Wait(), &log)
	}
	d.running[id] = cmd
}

// join adds servers to the cluster of another one, starts them with nothing, and waits until they are whole.
func (d *drill) join(to raft.ServerID, ids ...raft.ServerID) {
	d.t.Helper()
	for _, id := range ids {
		d.command(to, "", "servers", "add", string(id))
	}
	d.serve(ids...)
}

// await waits until a server's status is as wanted.
func (d *drill) await(id raft.ServerID, what string, wanted func(status) bool) (st status) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.ctx, http.MethodGet, "http://"+d.cluster.Servers[id].HTTP+"/v1/watch", nil)
	if err != nil {
		d.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	for in := json.NewDecoder(resp.Body); ; {
		var now status
		if err := in.Decode(&now); err != nil {
			d.t.Fatalf("%s is not %s: %v: %+v", id, what, err, st)
		}
		if st = now; wanted(st) {
			return st
		}
	}
}

// kill kills all servers with SIGKILL.
func (d *drill) kill() {
	for id := range d.running {
		d.stop(id)
	}
}

// stop kills one.
func (d *drill) stop(id raft.ServerID) {
	d.running[id].Process.Kill()
	d.running[id].Wait() // the error is the signal
	delete(d.running, id)
}

// try runs a command, against a server if there is one.
func (d *drill) try(id raft.ServerID, stdin string, args ...string) (string, error) {
	if id != "" {
		args = append([]string{"-server", "http://" + d.cluster.Servers[id].HTTP}, args...)
	}
	cmd := d.process(args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// command is try for what has to work.
func (d *drill) command(id raft.ServerID, stdin string, args ...string) string {
	d.t.Helper()
	out, err := d.try(id, stdin, args...)
	if err != nil {
		d.t.Fatalf("%s: %v: %s", args, err, out)
	}
	return out
}

// destroy deletes directories of servers, or parts of them, which no process has.
func (d *drill) destroy(parts ...string) {
	d.t.Helper()
	for _, part := range parts {
		if err := os.RemoveAll(filepath.Join(d.dir, part)); err != nil {
			d.t.Fatal(err)
		}
	}
}

// copy copies what one server has to where another looks for it.
func (d *drill) copy(from, to string) {
	d.t.Helper()
	if err := os.CopyFS(filepath.Join(d.dir, to), os.DirFS(filepath.Join(d.dir, from))); err != nil {
		d.t.Fatal(err)
	}
}

// whole wants all secrets of all servers, and a full rotation, as if nothing had happened.
func (d *drill) whole() {
	d.t.Helper()
	d.command("s1", "", "keys", "rotate", "-full")
	d.await("s2", "moved", func(st status) bool { // all to the active key
		return st.Secrets == len(d.secrets) && st.Keys[0].Records == len(d.secrets)
	})
	for path, value := range d.secrets {
		for id := range d.running {
			if got := d.command(id, "", "get", "-stale", path); got != value {
				d.t.Errorf("%s on %s is %q, want %q", path, id, got, value)
			}
		}
	}
}

// backUp makes a backup, and returns the arguments with which it is restored to a server.
func (d *drill) backUp(to raft.ServerID) []string {
	d.t.Helper()
	identity := newIdentity(d.t)
	key, file := filepath.Join(d.t.TempDir(), "key"), filepath.Join(d.t.TempDir(), "backup")
	if err := os.WriteFile(key, []byte(identity.String()), 0o600); err != nil {
		d.t.Fatal(err)
	}
	sum, _, _ := strings.Cut(d.command("s1", "", "backup", "-to", identity.Recipient().String(), file), " ")
	d.command("", "", "verify", "-identity", key, file)
	return []string{"restore", "-identity", key, "-sha256", sum, d.dir, string(to), file}
}

func TestDrillAllDisksAreGoneAndThereIsABackup(t *testing.T) {
	t.Parallel()
	d := newDrill(t)
	restore := d.backUp("s2")
	d.command("s1", "too late", "put", "app/late") // and so it is not there in the end
	d.kill()
	d.destroy("s1", "s2", "s3")
	d.command("", "", restore...)
	if out, err := d.try("", "", restore...); err == nil {
		t.Errorf("restored twice: %s", out)
	}
	d.serve("s2")
	d.join("s2", "s1", "s3")
	d.whole()
}

// TestDrillAServerIsRemovedAndComesBack as another one. Who is removed knows, and is refused until it is
// added; what no server can do without is not removed.
func TestDrillAServerIsRemovedAndComesBack(t *testing.T) {
	t.Parallel()
	d := newDrill(t)
	d.stop("s3")
	if out, err := d.try("s1", "", "servers", "remove", "s2"); err == nil {
		t.Errorf("with s3 away s2 is removed: %q", out)
	}
	d.serve("s3")
	if out := d.command("s1", "", "servers", "remove", "s3"); !strings.Contains(out, "s3 is removed") {
		t.Errorf("remove says %q", out)
	}
	d.await("s3", "told", func(st status) bool { return strings.Contains(strings.Join(st.Problems, "\n"), "removed") })
	d.stop("s3")
	d.destroy("s3")
	if out, err := d.try("s2", "", "servers", "add", "s4"); err == nil || !strings.Contains(out, "is unknown: give one") {
		t.Errorf("a server without an address is added: %v, %q", err, out)
	}
	d.join("s2", "s3")
	d.whole()
}

func TestDrillAllDisksButOneAreGone(t *testing.T) {
	t.Parallel()
	d := newDrill(t)
	d.await("s3", "level", func(st status) bool { return st.Secrets == len(d.secrets) })
	d.kill()
	d.destroy("s1", "s2")
	d.command("", "", "recover", d.dir, "s3")
	d.serve("s3")
	d.join("s3", "s1", "s2")
	d.whole()
}

// TestDrillASnapshotAndAKeystore of two servers become a third: the keystore's KEK goes with it.
func TestDrillASnapshotAndAKeystore(t *testing.T) {
	t.Parallel()
	d := newDrill(t)
	d.backUp("s1") // which has raft make a snapshot, on the leader
	leader := string(d.await("s1", "led", func(st status) bool { return st.Leader != "" }).Leader)
	other := map[string]string{"s1": "s2", "s2": "s3", "s3": "s1"}[leader]
	d.kill()
	snapshots, keystore := filepath.Join(leader, "raft", "snapshots"), filepath.Join(other, "keystore")
	d.copy(snapshots, "kept/snapshots")
	d.copy(keystore, "kept/keystore")
	d.destroy("s1", "s2", "s3")
	d.copy("kept/snapshots", filepath.Join(other, "raft", "snapshots"))
	d.copy("kept/keystore", keystore)
	d.command("", "", "recover", d.dir, other)
	d.serve(raft.ServerID(other))
	for id := range d.cluster.Servers {
		if string(id) != other {
			d.join(raft.ServerID(other), id)
		}
	}
	d.whole()
}

// TestDrillASnapshotAlone says which keys are missing, serves what it can, makes no key in their place,
// and heals without a restart when their files turn up.
func TestDrillASnapshotAlone(t *testing.T) {
	t.Parallel()
	d := newDrill(t)
	d.backUp("s1")
	leader := d.await("s1", "led", func(st status) bool { return st.Leader != "" }).Leader
	id := string(leader)
	d.kill()
	d.copy(filepath.Join(id, "keystore"), "kept")
	for other := range d.cluster.Servers {
		if other != leader {
			d.destroy(string(other))
		}
	}
	d.destroy(filepath.Join(id, "keystore"), filepath.Join(id, "raft", "raft.db"))
	if out := d.command("", "", "recover", d.dir, id); strings.Count(out, "missing: ") != 2 {
		d.t.Errorf("recover says %s", out)
	}
	d.start(leader)
	st := d.await(leader, "without its keys, each with a problem", func(st status) bool { // once it has caught up
		unnamed := func(key string) bool {
			return !slices.ContainsFunc(st.Causes, func(p keyring.Problem) bool {
				return slices.ContainsFunc(p.Keys, func(id keyring.KeyID) bool { return p.Kind == keyring.ProblemKeyMissing && id.String() == key })
			})
		}
		return len(st.Missing) == 2 && st.Leader == leader && !slices.ContainsFunc(st.Missing, unnamed)
	})
	if out, err := d.try(leader, "", "get", "app/1"); err == nil || !strings.Contains(out, st.Keys[1].ID) {
		t.Errorf("get: %s", out)
	}
	if out, err := d.try(leader, "new", "put", "app/new"); err == nil {
		t.Errorf("put: %s", out)
	}
	d.destroy("kept/.lock", "kept/keystore.id") // the directory is in use, and has its own
	d.copy("kept", filepath.Join(id, "keystore"))
	if st := d.await(leader, "healed", func(st status) bool { return st.Ready && len(st.Missing) == 0 }); len(st.Keys) != 2 {
		t.Errorf("there are other keys: %+v", st.Keys)
	}
	for other := range d.cluster.Servers {
		if other != leader {
			d.join(leader, other)
		}
	}
	d.whole()
}

// TestDrillAKeystoreAlone: raft is gone, and with it the secrets. The keys are adopted.
func TestDrillAKeystoreAlone(t *testing.T) {
	t.Parallel()
	d := newDrill(t)
	before := d.await("s2", "level", func(st status) bool { return len(st.Keys) == 2 })
	d.kill()
	d.destroy("s1", "s3", "s2/raft")
	d.serve("s1", "s2", "s3")
	d.await("s2", "whole", func(st status) bool {
		known := map[string]bool{}
		for _, k := range st.Keys {
			known[k.ID] = true
		}
		return len(st.Missing) == 0 && known[before.Keys[0].ID] && known[before.Keys[1].ID]
	})
}

// TestDrillAllKEKsAreLost, as when a KMS is gone: escrow is the way back, once.
func TestDrillAllKEKsAreLost(t *testing.T) {
	t.Parallel()
	identity := newIdentity(t)
	file := filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(file, []byte(identity.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	escrow := []string{"-escrow", identity.Recipient().String()}
	d := newDrill(t, escrow...)
	d.kill()
	for id := range d.cluster.Servers {
		if err := os.WriteFile(filepath.Join(d.dir, string(id)+".kek"), fmt.Appendf(nil, "\x00%031s", id), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.start("s1")
	d.start("s2")
	d.await("s1", "naming the lost KEK", func(st status) bool {
		return len(st.Missing) == 2 && strings.Contains(strings.Join(st.Problems, "\n"), string(keyring.ProblemKEKUnconfigured))
	})
	d.kill()

	d.flags = append(escrow, "-identity", file)
	d.serve("s1", "s2", "s3")
	for id := range d.cluster.Servers {
		d.await(id, "off its old KEKs", func(st status) bool { return !strings.Contains(strings.Join(st.Problems, "\n"), "old KEKs") })
	}
	d.kill()
	d.flags = escrow
	d.serve("s1", "s2", "s3")
	d.whole()
}
