package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/node"
)

// Scripts tell by the exit status whether it is their fault, the world's, or what they wanted to know. And
// they get nothing that is for terminals.
func TestExitStatus(t *testing.T) {
	var keystore string
	_, c := alone(t, func(_ *server, conf *node.Config) { keystore = filepath.Join(conf.Dir, "keystore") })
	dir, identity, cluster := t.TempDir(), newIdentity(t), initialized(t, 3)
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("key", identity.String())
	write("other", newIdentity(t).String())
	if err := os.Mkdir(path("odd"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join("odd", keyring.KeyID{1}.String()+".nks.json"), "")
	d := &drill{t: t, ctx: t.Context()}
	d.backup(c.base, identity.Recipient().String(), path("backup"), path("short"))

	for _, test := range []struct {
		want int
		args []string
	}{
		{0, []string{"verify", "-identity", path("key"), path("backup")}},
		{0, []string{"inspect", keystore}},
		{0, []string{"-h"}},
		{0, []string{"recover", "-h"}},
		{1, []string{"-server", "http://127.0.0.1:1", "list"}},
		{1, []string{"-server", c.base, "backup", "-to", identity.Recipient().String(), path("backup")}},
		{1, []string{"verify", "-identity", path("none"), path("backup")}},
		{1, []string{"verify", "-identity", path("key"), path("none")}},
		{1, []string{"verify", "-identity", path("key"), dir}}, // opens, and can't be read
		{1, []string{"restore", "-identity", path("key"), "-unauthenticated", path("none"), "s1", path("backup")}},
		{2, []string{"restore", "-identity", path("key"), path("none"), "s1", path("backup")}},
		{1, []string{"inspect", path("none")}},
		{1, []string{"recover", path("none"), "s1"}},
		{1, []string{"inspect", "-kek", path("none"), keystore}},
		{2, nil},
		{2, []string{"keys"}},
		{2, []string{"-nonsense"}},
		{2, []string{"get"}},
		{2, []string{"verify", "-nonsense", path("backup")}},
		{2, []string{"verify", path("backup")}},
		{2, []string{"backup", path("other")}},
		{2, []string{"put", "-if", "new", "a"}},
		{2, []string{"restore", "-identity", path("key"), "-sha256", "1", dir, "s1", path("backup")}},
		{2, []string{"restore", "-identity", path("key"), "-unauthenticated", cluster, "s4", path("backup")}},
		{2, []string{"recover", cluster, "s4"}},
		{2, []string{"serve", cluster, "s4"}},
		{2, []string{"init", "-servers", "0", path("five")}},
		{3, []string{"verify", "-identity", path("key"), path("short")}},
		{3, []string{"verify", "-identity", path("key"), path("key")}},
		{3, []string{"verify", "-identity", path("other"), path("backup")}},
		{3, []string{"inspect", path("odd")}},
		{3, []string{"inspect", cluster}},
	} {
		d.exits(test.want, test.args)
	}
}

// backup makes a backup, and a copy that lacks its last byte.
func (d *drill) backup(server, recipient, file, short string) {
	d.t.Helper()
	d.command("", "", "-server", server, "backup", "-to", recipient, file)
	b, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(short, b[:len(b)-1], 0o600)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// exits runs a command that has to exit with a status.
func (d *drill) exits(want int, args []string) {
	d.t.Helper()
	out, err := d.try("", "", args...)
	got := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		d.t.Fatal(err)
	}
	if got != want || strings.Contains(out, "\r") || got > 0 && !strings.Contains(out, "controlplane: ") {
		d.t.Errorf("%q exits with %d, want %d: %q", args, got, want, out)
	}
}

// Each server has a certificate, a KEK and addresses of its own, however many there are.
func TestInitMakesAsManyServersAsAreAsked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	out, err := runCommand(t, client{}, "init", "-port", "0", "-servers", "5", dir)
	if err != nil || strings.Count(out, "\n") != 5 || !strings.Contains(out, " s5 ") {
		t.Fatalf("%v: %s", err, out)
	}
	c, err := readCluster(dir)
	addrs, keks := map[string]bool{}, map[string]bool{}
	for id, a := range c.Servers {
		addrs[a.Raft], addrs[a.HTTP] = true, true
		if _, err := tlsOf(dir, id)(); err != nil {
			t.Error(err)
		}
		kek, err := os.ReadFile(filepath.Join(dir, string(id)+".kek"))
		if err != nil {
			t.Error(err)
		}
		keks[string(kek)] = true
	}
	if err != nil || len(addrs) != 10 || len(keks) != 5 {
		t.Errorf("%v: %d addresses and %d KEKs for 5 servers", err, len(addrs), len(keks))
	}
}

// The documentation is what -h prints: of all, or of a command. Wrong usage prints it too.
func TestUsageIsThatOfTheDocumentation(t *testing.T) {
	all, err := runCommand(t, client{}, "-h")
	if err != nil || !strings.HasPrefix(all, usageOf("")) {
		t.Errorf("%v: %s", err, all)
	}
	for _, args := range [][]string{{"-h"}, {"keys", "-h"}, {"servers", "-h"}} {
		if out, err := runCommand(t, client{}, args...); err != nil || out != all {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
	if n := strings.Count(all, "\n"); n != 24 {
		t.Errorf("%d lines:\n%s", n, all)
	}
	for line := range strings.Lines(all) {
		words := strings.Fields(strings.Replace(line, "[-server URL] ", "", 1))[1:]
		args := words[:1]
		if args[0] == "keys" || args[0] == "servers" {
			args = words[:2]
		}
		if out, err := runCommand(t, client{}, append(args, "-h")...); err != nil || !strings.HasPrefix(out, line) {
			t.Errorf("%q -h: %v\n%s", args, err, out)
		} else {
			explains(t, args, line, out[len(line):])
		}
		out, err := runCommand(t, client{}, append(args, "-nonsense")...)
		if exitStatus(err) != 2 || !strings.HasSuffix(err.Error()+"\n", "\n"+line) {
			t.Errorf("%q -nonsense: %v\n%s", args, err, out)
		}
	}
	if _, err := runCommand(t, client{}, "kyes"); exitStatus(err) != 2 || !strings.Contains(err.Error()+"\n", all) {
		t.Errorf("no command: %v", err)
	}
}

// explains wants a line of -h for each flag of a command, with what it is.
func explains(t *testing.T, command []string, usage, lines string) {
	t.Helper()
	said := map[string]bool{}
	for line := range strings.Lines(lines) {
		name, is, ok := strings.Cut(strings.TrimSpace(line), " ")
		if said[name] = true; !ok || strings.TrimSpace(is) == "" {
			t.Errorf("%q -h does not say what %s is", command, name)
		}
	}
	_, own, _ := strings.Cut(usage, command[0])
	own, _, _ = strings.Cut(own, "       ") // before what it does
	for _, m := range regexp.MustCompile(`(?:^|[ \[])(-[a-z][a-z0-9-]*)`).FindAllStringSubmatch(own, -1) {
		if !said[m[1]] {
			t.Errorf("%q -h has no line for %s: %s", command, m[1], lines)
		}
		delete(said, m[1])
	}
	for name := range said {
		t.Errorf("%q -h has %s, which its first line has not", command, name)
	}
}
