package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/node"
	"filippo.io/age"
)

func newIdentity(t *testing.T) *age.X25519Identity {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// runCommand runs the program and returns all that it prints.
func runCommand(t *testing.T, c client, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	if c.base != "" {
		args = append([]string{"-server", c.base}, args...)
	}
	err := run(t.Context(), args, nil, &out, &out)
	return out.String(), err
}

// A backup by the command line, checked, and restored to a server that then starts from it.
func TestBackupVerifyRestore(t *testing.T) {
	_, c := alone(t, nil)
	if status, body := c.do(t, "PUT", "/v1/secrets/db/password", "", `{"value":"hunter2"}`); status != 200 {
		t.Fatal(status, body)
	}
	dir, identity := t.TempDir(), newIdentity(t)
	key, file, cluster := filepath.Join(dir, "key"), filepath.Join(dir, "backup"), filepath.Join(dir, "cluster")
	if err := os.WriteFile(key, []byte(identity.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	command := func(args ...string) (string, error) { return runCommand(t, c, args...) }
	sum, err := command("backup", "-to", identity.Recipient().String(), file)
	if err != nil {
		t.Fatal(err)
	}
	_, signer, _ := strings.Cut(strings.TrimSpace(sum), "signed by ")
	sum, _, _ = strings.Cut(sum, " ")
	for _, more := range [][]string{nil, {"-sha256", sum}, {"-signer", signer}} {
		args := slices.Concat([]string{"verify", "-identity", key}, more, []string{file})
		if out, err := command(args...); err != nil || !strings.Contains(out, sum) || !strings.Contains(out, "1 keys") || !strings.Contains(out, "signed by "+signer) {
			t.Errorf("%v: %s, %v", args, out, err)
		}
	}
	if _, body := c.do(t, "GET", "/v1/status", "", ""); !strings.Contains(body, signer) {
		t.Errorf("the status does not show the signer %s: %s", signer, body)
	}
	if out, err := command("init", "-port", "0", cluster); err != nil {
		t.Fatal(out, err)
	}
	for _, bad := range [][]string{
		{"backup", "-to", "nobody", filepath.Join(dir, "none")},
		{"verify", "-identity", key, key},
		{"verify", "-identity", file, file},
		{"verify", "-identity", key, "-sha256", strings.Repeat("1", 64), file},
		{"verify", "-identity", key, "-signer", strings.Repeat("1", 64), file},
		{"verify", "-identity", key, "-cluster", "another", file},
		{"restore", "-identity", key, "-sha256", strings.Repeat("1", 64), cluster, "s1", file},
		{"restore", "-identity", key, "-signer", strings.Repeat("1", 64), cluster, "s1", file},
		{"restore", "-identity", key, "-sha256", "1", cluster, "s1", file},
		{"restore", "-identity", key, cluster, "s1", file}, // whose is it?
	} {
		if out, err := command(bad...); err == nil {
			t.Errorf("%v: %s", bad, out)
		}
	}
	wantFiles(t, dir, "backup", "cluster", "key") // none of the backup that failed

	if out, err := command("restore", "-identity", key, "-sha256", sum, cluster, "s1", file); err != nil || !strings.Contains(out, sum) {
		t.Fatal(out, err)
	}
	wantRestored(t, cluster)
	if out, err := command("restore", "-identity", key, "-unauthenticated", cluster, "s1", file); err == nil {
		t.Errorf("restored over it: %s", out)
	}
}

// wantRestored starts the restored server and wants it to have the secret. It runs until the test ends.
func wantRestored(t *testing.T, cluster string) {
	t.Helper()
	s, conf, err := newServer(cluster, "s1", options{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := s.begin(n); err != nil {
		t.Fatal(err)
	}
	if err := n.Keyring().WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept, ok := s.store.Get("db/password")
	if !ok {
		t.Fatal("the secret is not there")
	}
	if got, err := s.open(t.Context(), kept); err != nil || string(got) != "hunter2" {
		t.Errorf("%q, %v", got, err)
	}
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	var names []string
	files, err := os.ReadDir(dir)
	for _, f := range files {
		names = append(names, f.Name())
	}
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("%q in %s, %v, want %q", names, dir, err, want)
	}
}

// Of three servers one is left. It goes on with all that it has, and the others join it with nothing.
func TestRecover(t *testing.T) {
	dir := initialized(t, 3)
	servers := startServers(t, dir, options{}, nil, "s1", "s2", "s3")
	leader := servers[servers["s1"].await(t, func(st status) bool { return st.Leader != "" }).Leader]
	old := leader.node.Keyring().Keys()[0].ID.String()
	put := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if w := ask(leader, "PUT", fmt.Sprint("/v1/secrets/", i), fmt.Sprintf(`{"value":"value %d"}`, i)); w.Code != http.StatusOK {
				t.Fatal(w.Code, w.Body)
			}
		}
	}
	put(0, 10)
	if w := ask(leader, "POST", "/v1/keys", `{}`); w.Code != http.StatusOK {
		t.Fatal(w.Code, w.Body)
	}
	put(10, 20)
	hasAll := func(st status) bool {
		return st.Secrets == 20 && len(st.Keys) == 2 && len(st.Missing) == 0 && st.Ready && st.Leader != ""
	}
	servers["s3"].await(t, hasAll)
	stop(t, servers)
	for _, id := range []string{"s1", "s2"} {
		if err := os.RemoveAll(filepath.Join(dir, id)); err != nil {
			t.Fatal(err)
		}
	}

	recoverWithout(t, dir, old)

	survivor := startServers(t, dir, options{}, nil, "s3")["s3"]
	survivor.await(t, hasAll)
	wantAll(t, survivor, "")
	for _, id := range []string{"s1", "s2"} {
		if w := ask(survivor, "POST", "/v1/servers", `{"id":"`+id+`"}`); w.Code != http.StatusOK {
			t.Fatal(w.Code, w.Body)
		}
	}
	for id, s := range startServers(t, dir, options{}, nil, "s1", "s2") {
		st := s.await(t, hasAll)
		if st.Leader != "s3" {
			t.Errorf("%s follows %q", id, st.Leader)
		}
		wantAll(t, s, "?stale")
	}
}

// recoverWithout recovers s3 while the file of a key is missing, or broken, or there again.
func recoverWithout(t *testing.T, dir, old string) {
	t.Helper()
	// A key whose file is missing is named, and its file is taken when it is back.
	file := filepath.Join(dir, "s3", "keystore", old+".nks.json")
	if err := os.Rename(file, filepath.Join(dir, "aside")); err != nil {
		t.Fatal(err)
	}
	if out, err := runCommand(t, client{}, "recover", dir, "s3"); err != nil || !regexp.MustCompile(
		`^s3 is the only member; everything after log index \d+ of [\d-]{10} [\d:]{8} UTC is lost, and 1 keys are missing\nmissing: `+old+`\n`).MatchString(out) {
		t.Fatalf("%s, %v", out, err)
	}
	// The file that was set aside when the key was removed is said to be there.
	if err := os.Rename(filepath.Join(dir, "aside"), file+".removed-1"); err != nil {
		t.Fatal(err)
	}
	if out, err := runCommand(t, client{}, "recover", dir, "s3"); err != nil || !strings.Contains(out, "\nmissing: "+old+": it may come back from its .removed file") {
		t.Fatalf("a file that was set aside: %s, %v", out, err)
	}
	if err := os.Rename(file+".removed-1", filepath.Join(dir, "aside")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := runCommand(t, client{}, "recover", dir, "s3"); err != nil || !strings.Contains(out, "\nmissing: "+old+": ") {
		t.Fatalf("a file that does not open: %s, %v", out, err)
	}
	if err := os.Rename(filepath.Join(dir, "aside"), file); err != nil {
		t.Fatal(err)
	}
	if out, err := runCommand(t, client{}, "recover", dir, "s3"); err != nil || strings.Count(out, "\n") != 2 ||
		!strings.Contains(out, fmt.Sprintf("\nstart s3; before you start s1 and s2 again, empty %[1]s/s1 and %[1]s/s2, ", dir)) {
		t.Fatalf("%s, %v", out, err)
	}
	if out, err := runCommand(t, client{}, "recover", dir, "s1"); err == nil {
		t.Errorf("recovered from nothing: %s", out)
	}
}

// A server that answers has a vote in a cluster that may live on. What it answers does not matter, as it may
// just have started.
func TestNoClusterBesideAServerThatAnswers(t *testing.T) {
	dir := initialized(t, 3)
	servers := startServers(t, dir, options{}, nil, "s1", "s2", "s3")
	servers["s3"].await(t, func(st status) bool { return st.Ready && len(st.Missing) == 0 && len(st.Keys) > 0 })
	identity := newIdentity(t)
	key, file := filepath.Join(t.TempDir(), "key"), filepath.Join(t.TempDir(), "backup")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	leader := servers[servers["s3"].await(t, func(st status) bool { return st.Leader != "" }).Leader]
	_, err = leader.node.Keyring().Backup(t.Context(), f, identity.Recipient())
	if err := errors.Join(err, f.Close(), os.WriteFile(key, []byte(identity.String()), 0o600)); err != nil {
		t.Fatal(err)
	}
	stop(t, servers)
	c, err := readCluster(dir)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", c.Servers["s1"].Raft)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	recover := []string{"recover", dir, "s3"}
	if err := os.Rename(filepath.Join(dir, "s2"), filepath.Join(dir, "kept")); err != nil {
		t.Fatal(err)
	}
	restore := []string{"restore", "-identity", key, "-unauthenticated", dir, "s2", file}
	for _, args := range [][]string{recover, restore} {
		if out, err := runCommand(t, client{}, args...); err == nil || !strings.Contains(err.Error(), `server "s1" at `+c.Servers["s1"].Raft) || out != "" {
			t.Errorf("%v: %s, %v", args, out, err)
		}
		if out, err := runCommand(t, client{}, slices.Insert(args, 1, "-force")...); err != nil || out == "" {
			t.Errorf("%v -force: %s, %v", args, out, err)
		}
	}
}

// wantAll wants the secrets of TestRecover from a server.
func wantAll(t *testing.T, s *server, query string) {
	t.Helper()
	for i := range 20 {
		w := ask(s, "GET", fmt.Sprint("/v1/secrets/", i, query), "")
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), fmt.Sprintf(`"value %d"`, i)) {
			t.Errorf("%s: secret %d: %d %s", s.id, i, w.Code, w.Body)
		}
	}
}

// JSON carries text alone: what is not would come back as something else.
func TestPutRefusesWhatIsNoText(t *testing.T) {
	_, c := alone(t, nil)
	var out bytes.Buffer
	err := run(t.Context(), []string{"-server", c.base, "put", "a"}, strings.NewReader("a\xffb"), &out, &out)
	if err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("%v, %s", err, &out)
	}
}
