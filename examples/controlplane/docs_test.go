package main

// The commands of the pages for operators, run as they stand, with real processes.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// ageTool is age and age-keygen as far as the pages call them, for machines that have neither.
func ageTool(name string, args []string) error {
	if name == "age-keygen" { // -o FILE
		identity, err := age.GenerateX25519Identity()
		if err != nil {
			return err
		}
		os.Stderr.WriteString("Public key: " + identity.Recipient().String() + "\n")
		return writeNew(args[1], []byte(identity.String()+"\n"))
	}
	identities, err := readIdentities(args[2]) // -d -i FILE BACKUP
	if err != nil {
		return err
	}
	f, err := os.Open(args[3])
	if err != nil {
		return err
	}
	plain, err := age.Decrypt(f, identities...)
	if err == nil {
		_, err = io.Copy(os.Stdout, plain)
	}
	return errors.Join(err, f.Close())
}

// reader does what the pages say: it has a shell, in a directory with the programs.
type reader struct {
	*drill
	bin     string
	vars    map[string]string // those of the pages
	fresh   []raft.ServerID   // were started, and may not be ready yet
	said    string            // by the last command
	another *client           // of the cluster of a drill
}

// newReader has a cluster directory with the files of so many servers, of which the first three are the cluster.
func newReader(t *testing.T, servers int) *reader {
	t.Helper()
	root := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	r := &reader{drill: &drill{
		t: t, ctx: ctx, dir: filepath.Join(root, "cp"), running: map[raft.ServerID]*exec.Cmd{},
	}, bin: root, vars: map[string]string{}}
	t.Cleanup(r.kill)
	for _, name := range []string{"controlplane", "age", "age-keygen"} {
		if err := os.Symlink(must(t, os.Executable), filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if servers > 0 {
		r.initialize(servers)
	}
	return r
}

func must[T any](t *testing.T, f func() (T, error)) T {
	t.Helper()
	v, err := f()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (r *reader) initialize(servers int) {
	r.t.Helper()
	if err := setUp(r.dir, 0, servers); err != nil {
		r.t.Fatal(err)
	}
	r.know("s1", "s2", "s3")
}

// know has cluster.json name these servers, of those that were set up.
func (r *reader) know(ids ...raft.ServerID) {
	r.t.Helper()
	path := filepath.Join(r.dir, "cluster.json")
	if _, err := os.Stat(path + ".all"); err != nil {
		if err := os.Rename(path, path+".all"); err != nil {
			r.t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path + ".all")
	if err == nil {
		err = json.Unmarshal(b, &r.cluster)
	}
	known := r.cluster
	known.Servers = map[raft.ServerID]serverAddrs{}
	for _, id := range ids {
		known.Servers[id] = r.cluster.Servers[id]
	}
	if err == nil {
		b, err = json.Marshal(known)
	}
	if err := errors.Join(err, os.WriteFile(path, b, 0o600)); err != nil {
		r.t.Fatal(err)
	}
}

// here is a line of a page with the paths and addresses that there are here.
func (r *reader) here(line string) string {
	of := []string{"/tmp/cp", r.dir, "/tmp/drill", filepath.Join(r.bin, "drill"), "/tmp/new", filepath.Join(r.bin, "new"), "/mnt/backups", filepath.Join(r.bin, "backups"),
		"10.0.0.4:7900", r.cluster.Servers["s4"].Raft, "init -port 9001", "init -port 0", "init -servers", "init -port 0 -servers"}
	for id, port := range map[raft.ServerID]string{"s1": "8001", "s2": "8002"} {
		of = append(of, "http://127.0.0.1:"+port, "http://"+r.cluster.Servers[id].HTTP)
	}
	if r.another != nil {
		of = append(of, "http://127.0.0.1:9001", r.another.base)
	}
	return strings.NewReplacer(of...).Replace(line)
}

// do runs the lines of a block, one after the other. A line that ends with & starts a server.
func (r *reader) do(lines []string) {
	r.t.Helper()
	for _, line := range lines {
		command := strings.TrimSpace(regexp.MustCompile(` +#.*`).ReplaceAllString(r.here(line), ""))
		if served, is := strings.CutSuffix(command, " &"); is {
			r.background(strings.Fields(os.Expand(served, func(name string) string { return r.vars[name] })))
			continue
		}
		r.settle()
		// Whoever asks the server of the pages asks ours.
		command = strings.Replace(command, "./controlplane ", "./controlplane -server http://"+r.cluster.Servers["s1"].HTTP+" ", 1)
		r.shell(line, command)
	}
	r.settle()
}

// shell runs a line that has to work, again once there is a leader if there was none: servers that share two cores may hear
// too late from theirs.
func (r *reader) shell(line, command string) {
	r.t.Helper()
	cmd := exec.CommandContext(r.ctx, "bash", "-ec", command)
	cmd.Dir, cmd.Env = r.bin, append(os.Environ(), "PATH="+r.bin+":"+os.Getenv("PATH"), "CONTROLPLANE=1", "GORACE=atexit_sleep_ms=0")
	for name, value := range r.vars {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.CombinedOutput()
	r.said = string(out)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 3 && strings.Contains(line, "keys status") {
		return // there may be problems on the way
	}
	if err != nil && strings.Contains(r.said, "no leader is known") {
		r.await("s1", "led", func(st status) bool { return st.Leader != "" })
		r.shell(line, command)
		return
	}
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// background starts a server: ./controlplane serve FLAGS DIR ID.
func (r *reader) background(words []string) {
	r.t.Helper()
	if len(words) < 4 || words[0] != "./controlplane" || words[1] != "serve" {
		r.t.Fatalf("%q is no server", words)
	}
	id, dir := raft.ServerID(words[len(words)-1]), words[len(words)-2]
	cmd := r.process(words[1:]...)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		r.t.Fatalf("%q does not start: %v: %s", words, cmd.Wait(), &log)
	}
	if dir != r.dir {
		r.running[id+" of "+raft.ServerID(dir)] = cmd
		r.another = &client{strings.TrimSpace(strings.TrimPrefix(said, string(id)+" "))}
		r.another.awaitReady(r.t)
		return
	}
	r.running[id] = cmd
	r.fresh = append(r.fresh, id)
}

// settle waits until the servers that were started are ready and have all keys.
func (r *reader) settle() {
	r.t.Helper()
	for _, id := range r.fresh {
		r.await(id, "whole", func(st status) bool { return st.Ready && st.Leader != "" && len(st.Missing) == 0 })
	}
	r.fresh = nil
}

// has wants every running server of the cluster to have the secret.
func (r *reader) has() {
	r.t.Helper()
	for _, id := range slices.Sorted(maps.Keys(r.running)) {
		if _, ours := r.cluster.Servers[id]; ours {
			r.await(id, "level", func(st status) bool { return st.Secrets == 1 })
			if got := r.command(id, "", "get", "-stale", "db/password"); got != "hunter2" {
				r.t.Errorf("%s has %q", id, got)
			}
		}
	}
}

// active is the key that encrypts.
func (r *reader) active() string {
	r.t.Helper()
	key := ""
	r.await("s1", "with a key", func(st status) bool {
		for _, k := range st.Keys {
			if k.State == keyring.StateActive {
				key = k.ID
			}
		}
		return key != ""
	})
	return key
}

// noteRecipient takes the recipient of what age-keygen has printed.
func (r *reader) noteRecipient() {
	_, recipient, _ := strings.Cut(strings.TrimSpace(r.said), "Public key: ")
	r.vars["RECIPIENT"] = recipient
}

// TestControlPlanePageStepByStep goes through the README here and the commands of docs/operations.md.
func TestControlPlanePageStepByStep(t *testing.T) {
	t.Parallel()
	r := newReader(t, 0)
	lines := keyringtest.Commands(t, "examples/controlplane/README.md", "run")
	if lines[0] != "go build ./examples/controlplane" || !strings.HasPrefix(lines[1], "./controlplane init /tmp/cp ") {
		t.Fatalf("it begins with %q", lines[:2])
	}
	r.initialize(3) // with ports that are free here
	r.do(lines[2:])
	r.do(keyringtest.Commands(t, "examples/controlplane/README.md", "use"))
	if strings.Count(r.said, ".") != 2 {
		t.Errorf("the token is %q", r.said)
	}
	r.has()
	first := r.active()
	r.do(keyringtest.Commands(t, "examples/controlplane/README.md", "operate"))
	r.stop("s3")
	r.destroy("s3")
	r.do([]string{"./controlplane serve /tmp/cp s3 &"})
	if r.active() == first {
		t.Error("the key from before is active")
	}
	r.await("s1", "moved, with a key to come", func(st status) bool {
		return len(st.Keys) == 3 && st.Keys[0].State == keyring.StatePrepublished && st.Keys[1].Records == 1
	})
	r.has()
	r.do(keyringtest.Commands(t, "docs/operations.md", "status"))
	if !strings.HasPrefix(r.said, `{"cluster":"controlplane"`) {
		t.Errorf("the JSON is %q", r.said)
	}
	r.do(keyringtest.Commands(t, "docs/operations.md", "inspect"))
	if strings.Count(r.said, ".nks.json") < 2 || strings.Count(r.said, ".nks.json") != strings.Count(r.said, "*") {
		t.Errorf("inspect says %s", r.said)
	}
	if demo := must(t, func() ([]byte, error) { return os.ReadFile("demo/main.go") }); !bytes.Contains(demo, []byte(`"secrets", 2000,`)) {
		t.Error("the demo does not put 2,000 secrets")
	}
}

// TestRecoveryPageStepByStep goes through docs/backup.md and docs/recovery.md, from one loss to the next.
func TestRecoveryPageStepByStep(t *testing.T) {
	t.Parallel()
	r := newReader(t, 3)
	if err := os.Mkdir(filepath.Join(r.bin, "backups"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.do(keyringtest.Commands(t, "docs/backup.md", "identity"))
	r.noteRecipient()
	schedule := keyringtest.Commands(t, "docs/backup.md", "schedule")[0]
	r.do([]string{schedule, strings.Replace(schedule, " s1 &", " s2 &", 1), strings.Replace(schedule, " s1 &", " s3 &", 1)})
	r.await("s1", "backed up", func(st status) bool { return !st.LastBackup.Time.IsZero() })
	if files := must(t, func() ([]string, error) { return filepath.Glob(filepath.Join(r.bin, "backups", "keyring-*.age")) }); len(files) != 1 {
		t.Errorf("the schedule has made %q", files)
	}
	r.do([]string{"printf hunter2 | ./controlplane put db/password", "./controlplane servers lead s1"})
	r.await("s1", "leading", func(st status) bool { return st.Leader == "s1" })
	r.has()
	r.backUp()
	r.do(keyringtest.Commands(t, "docs/backup.md", "prove"))
	r.do(keyringtest.Commands(t, "docs/backup.md", "unpack"))
	if files := keyringtest.FilesIn(t, filepath.Join(r.bin, "unpacked")); len(files) != 4 {
		t.Errorf("unpacked are %q", files)
	}

	r.stop("s3")
	r.do(keyringtest.Commands(t, "docs/recovery.md", "one-directory"))
	r.has()

	r.stop("s3")
	r.destroy("s3.kek")
	r.do(keyringtest.Commands(t, "docs/recovery.md", "one-kek"))
	r.has()

	r.copy("s1/raft/snapshots", "../cp.snapshots")
	r.await("s2", "caught up", func(st status) bool { return st.Secrets == 1 })
	r.kill()
	r.destroy("s1", "s3")
	r.do(keyringtest.Commands(t, "docs/recovery.md", "majority"))
	r.has()

	old := r.active()
	r.do([]string{"./controlplane keys rotate"})
	r.vars["ORPHAN"] = r.active()
	// The other two may have been the majority that holds it.
	r.await("s1", "holding the new key", func(st status) bool { return len(st.Missing) == 0 })
	r.kill()
	r.do(keyringtest.Commands(t, "docs/recovery.md", "snapshot"))
	if now := r.active(); now != old {
		t.Errorf("the active key is %s, that of the snapshot is %s", now, old)
	}
	r.await("s1", "with the key of after the snapshot", func(st status) bool { return len(st.Keys) == 2 })
	r.has()

	r.kill()
	r.destroy("s1", "s2", "s3")
	r.do(keyringtest.Commands(t, "docs/recovery.md", "restore"))
	r.has()

	r.do(keyringtest.Commands(t, "docs/recovery.md", "drill"))
	if r.said != "hunter2" {
		t.Errorf("the drill has %q", r.said)
	}
}

// backUp makes a backup as docs/backup.md says, and notes what it is known by.
func (r *reader) backUp() {
	r.t.Helper()
	r.do(keyringtest.Commands(r.t, "docs/backup.md", "make"))
	r.vars["SUM"], _, _ = strings.Cut(r.said, " ")
	_, signer, _ := strings.Cut(r.said, "signed by ")
	r.vars["SIGNER"] = strings.TrimSpace(signer)
}

// refuses wants s1 to refuse a certificate because nobody vouches for it.
func (r *reader) refuses(certificate string) {
	r.t.Helper()
	file := filepath.Join(r.dir, certificate)
	conf, err := keyring.ClientTLS(keyring.TLSFiles(file, file, filepath.Join(r.dir, "ca.pem")), r.cluster.Name, "s1", "keyring-raft/1")
	if err != nil {
		r.t.Fatal(err)
	}
	conn, err := (&tls.Dialer{Config: conf}).DialContext(r.ctx, "tcp", r.cluster.Servers["s1"].Raft)
	if err == nil {
		_, err = conn.Read(make([]byte, 1)) // the server's refusal comes after the handshake
		conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "unknown certificate authority") {
		r.t.Errorf("with %s: %v", certificate, err)
	}
}

// TestStolenServerPageStepByStep: its commands do what it says they do. What the thief gets after each step is in
// TestStolenServerStepByStep of package node.
func TestStolenServerPageStepByStep(t *testing.T) {
	t.Parallel()
	r := newReader(t, 4)
	r.do([]string{"./controlplane serve /tmp/cp s1 &", "./controlplane serve /tmp/cp s2 &", "./controlplane serve /tmp/cp s3 &"})
	r.do([]string{"printf hunter2 | ./controlplane put db/password"})
	r.vars["KEY"] = r.active()
	r.stop("s3")
	r.do(keyringtest.Commands(t, "docs/stolen-server.md", "remove"))
	rotate := keyringtest.Commands(t, "docs/stolen-server.md", "rotate")
	if r.do(rotate[:1]); !strings.Contains(r.said, r.vars["KEY"]) {
		t.Errorf("%s does not name %s: %s", rotate[0], r.vars["KEY"], r.said)
	}
	r.do(rotate[1:])
	if key := r.active(); !strings.Contains(r.said, key+" is active") || key == r.vars["KEY"] {
		t.Errorf("%s is active, and rotate says %q", key, r.said)
	}
	r.await("s1", "without the old key", func(st status) bool { return len(st.Keys) == 1 })
	r.do(keyringtest.Commands(t, "docs/stolen-server.md", "wait"))
	r.vars["RECIPIENT"] = newIdentity(t).Recipient().String()
	r.do(keyringtest.Commands(t, "docs/stolen-server.md", "backup"))
	r.do(keyringtest.Commands(t, "docs/stolen-server.md", "new-ca"))
	r.know("s1", "s2", "s4") // as s4 reads it; the others have read theirs
	r.do(keyringtest.Commands(t, "docs/stolen-server.md", "replace"))
	if !strings.Contains(r.said, "A member was not asked: the URL of its API is unknown (s4)") {
		t.Errorf("before the others know s4: %s", r.said)
	}
	r.await("s1", "with the vote of s4", func(st status) bool { return len(st.Voters) == 3 })
	for _, id := range []raft.ServerID{"s2", "s1"} {
		r.stop(id)
		for again := true; again; { // two of three are a majority, once the new leader has begun
			r.await("s4", "led", func(st status) bool { return st.Leader != "" && st.Leader != id })
			out, err := r.try("s4", "hunter2", "put", "db/password")
			if again = err != nil && strings.Contains(out+err.Error(), "keyring not ready"); err != nil && !again {
				t.Fatalf("%v: %s", err, out)
			}
		}
		r.do([]string{"./controlplane serve /tmp/cp " + string(id) + " &"})
	}
	gone := keyringtest.Commands(t, "docs/stolen-server.md", "old-ca")
	r.do(append([]string{strings.ReplaceAll(gone[0], "s1.pem", "s2.pem")}, gone...))
	if strings.Contains(r.said, "s3") || strings.Contains(r.said, "not asked") {
		t.Errorf("in the end: %s", r.said)
	}
	r.refuses("s3.pem")
	r.has()
	if got := must(t, func() (string, error) { return r.try("s4", "", "keys", "status") }); strings.Contains(got, r.vars["KEY"]) || strings.Contains(got, "s3") {
		t.Errorf("s4 says %s", got)
	}
}
