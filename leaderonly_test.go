package keyring_test

import (
	"context"
	"errors"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
)

// docsOf parses a package's files, without tests.
func docsOf(t *testing.T, dir string) *doc.Package {
	t.Helper()
	set := token.NewFileSet()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	p, err := doc.NewFromFiles(set, files, dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// leaderOnly are the methods of Keyring whose docs say that only the leader can do them.
func leaderOnly(t *testing.T) (names []string) {
	t.Helper()
	says := regexp.MustCompile(`\bLeader\s+only\b`)
	for _, of := range docsOf(t, ".").Types {
		for _, m := range of.Methods {
			if of.Name == "Keyring" && says.MatchString(m.Doc) {
				names = append(names, m.Name)
			}
		}
	}
	return names
}

// TestEveryExportedLeaderCallHasARow in the table of package node: with the method of a Node that does the same on any server, or with why
// there is none.
func TestEveryExportedLeaderCallHasARow(t *testing.T) {
	text := docsOf(t, "node").Doc
	row := regexp.MustCompile(`(?m)^\t(\w+) +(\w+|-)(?: {2,}(\S.*))?$`)
	rows := map[string]bool{}
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		name, of, why := m[1], m[2], m[3]
		if rows[name] {
			t.Errorf("%s is there twice", name)
		}
		rows[name] = true
		_, exists := reflect.TypeFor[*node.Node]().MethodByName(of)
		switch {
		case of == "-" && len(why) < 10:
			t.Errorf("%s: why does a Node not forward it?", name)
		case of != "-" && !exists:
			t.Errorf("%s: a Node has no %s", name, of)
		}
		if _, same := reflect.TypeFor[*node.Node]().MethodByName(name); same && of != name {
			t.Errorf("%s: a Node has it, and the row says %s", name, of)
		}
	}
	want := leaderOnly(t)
	for _, name := range want {
		if !rows[name] {
			t.Errorf("Keyring.%s is leader only, and the table in node/doc.go has no row of it", name)
		}
		delete(rows, name)
	}
	if len(rows) > 0 || len(want) < 20 {
		t.Errorf("rows of what is not leader only: %v", rows)
	}
}

// TestLeaderOnlyCallsSaySo: a follower refuses what the docs say that it does, and nothing else.
func TestLeaderOnlyCallsSaySo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every, cfg.Data = -1, keyring.NoData{}
		}})
		leader := keyringtest.Ready(t, c)
		first := leader.Keyring.Keys()[0].ID
		later, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitKeys(t, c)
		s := keyringtest.Follower(c)
		if err := leader.Keyring.Remove(t.Context(), first, keyring.RemoveOptions{}); err != nil { // for WaitRemoved
			t.Fatal(err)
		}
		keyringtest.AwaitRing(t, c)
		calls := callsOfKeyring(s, leader.ID, first, later.ID, kektest.Identity(t).Recipient())
		k := s.Keyring
		maps.Copy(calls, map[string]func(context.Context) error{
			"Encrypt":       func(context.Context) error { _, err := k.Encrypt(nil, nil); return err },
			"AppendEncrypt": func(context.Context) error { _, err := k.AppendEncrypt(nil, nil, nil); return err },
			"Sign":          func(context.Context) error { _, err := k.Sign(); return err },
			"SignTyped":     func(context.Context) error { _, err := k.SignTyped("at+jwt"); return err },
			"EncodeStatus":  func(context.Context) error { _, err := k.EncodeStatus(); return err },
			"LeaderProof":   func(context.Context) error { _, err := k.LeaderProof(keyring.JoinConn{}, ""); return err },
		})
		only := leaderOnly(t)
		for name, call := range calls {
			if err := call(t.Context()); errors.Is(err, keyring.ErrNotLeader) != slices.Contains(only, name) {
				t.Errorf("%s, by its docs leader only: %t: on a follower: %v", name, slices.Contains(only, name), err)
			}
		}
		for _, name := range only {
			if calls[name] == nil {
				t.Errorf("%s is not tried", name)
			}
		}
	})
}
