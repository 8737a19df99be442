package docs_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/join"
	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/seal"
	"example.com/keyring/records"
)

// constantOf is the value of a constant of a package that has a literal, or literals and operators, for one.
func constantOf(t *testing.T, dir, name string) int64 {
	t.Helper()
	fset, at := token.NewFileSet(), filepath.Join(keyringtest.Root(t), filepath.FromSlash(dir))
	files, err := os.ReadDir(at)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, filepath.Join(at, f.Name()), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			group, is := d.(*ast.GenDecl)
			if !is || group.Tok != token.CONST {
				continue
			}
			for _, spec := range group.Specs {
				s := spec.(*ast.ValueSpec)
				i := slices.IndexFunc(s.Names, func(id *ast.Ident) bool { return id.Name == name })
				if i < 0 || i >= len(s.Values) {
					continue
				}
				v, err := types.Eval(fset, nil, token.NoPos, types.ExprString(s.Values[i]))
				if err != nil {
					t.Fatal(err)
				}
				n, _ := constant.Int64Val(constant.ToInt(v.Value))
				return n
			}
		}
	}
	t.Fatalf("%s has no constant %s", dir, name)
	return 0
}

// sizeText is a number of bytes as the pages write it.
func sizeText(n int64) string {
	for unit, name := range map[int64]string{1 << 30: "GiB", 1 << 20: "MiB", 1 << 10: "KiB"} {
		if n%unit == 0 && n/unit < 1024 && n >= unit {
			return fmt.Sprintf("%d %s", n/unit, name)
		}
	}
	return fmt.Sprint(n)
}

// upTo is how a page names the versions from 1 to n.
func upTo(n int) string {
	if n == 1 {
		return "1"
	}
	if n == 2 {
		return "1 and 2"
	}
	return fmt.Sprintf("1 to %d", n)
}

// rowOf are the cells of the row of a page's tables that begins with this text.
func rowOf(t *testing.T, page, first string) (cells []string) {
	t.Helper()
	for line := range strings.Lines(keyringtest.Pages(t)[page]) {
		if c := strings.Split(line, "|"); len(c) > 2 && strings.TrimSpace(c[1]) == first {
			for _, cell := range c[1 : len(c)-1] {
				cells = append(cells, strings.TrimSpace(cell))
			}
			return cells
		}
	}
	t.Fatalf("%s has no row %q", page, first)
	return nil
}

// TestFormatsPageHasTheVersions that this build writes and reads.
func TestFormatsPageHasTheVersions(t *testing.T) {
	token, err := base64.RawURLEncoding.DecodeString(join.New().Text())
	if err != nil {
		t.Fatal(err)
	}
	var m bytes.Buffer
	if _, err := records.New(keyring.NewFSM()).View().WriteTo(&m); err != nil {
		t.Fatal(err)
	}
	section, lowest := int(m.Bytes()[len("\xc1recordsS")]), meta.This.Needs(meta.Command{Init: &meta.Init{}})
	if lowest != 1 {
		t.Errorf("the lowest version of log entries is %d", lowest)
	}
	raft := fmt.Sprintf("the lowest of 1 to %d that has its ", meta.Version)
	for first, want := range map[string][2]string{
		"ciphertext":                               {fmt.Sprint(constantOf(t, "internal/seal", "version")), fmt.Sprint(constantOf(t, "internal/seal", "version"))},
		"key file `.nks.json`":                     {fmt.Sprintf("%d, or 1 while a server of the cluster reads no more", nks.FileVersion), upTo(nks.FileVersion)},
		"key material, its check value, its AAD":   {fmt.Sprint(constantOf(t, "internal/nks", "materialVersion")), fmt.Sprint(constantOf(t, "internal/nks", "checkVersion"))},
		"raft log entry":                           {raft + "commands", upTo(meta.Version)},
		"keyring's section of a raft snapshot":     {raft + "content", upTo(meta.Version)},
		"commands and snapshot section of a `Map`": {fmt.Sprint(section), upTo(section)},
		"message between servers":                  {fmt.Sprintf("the lowest of 1 to %d that has its members", peer.Version), upTo(peer.Version)},
		"backup":                                   {"`" + backup.Format + "`", "`keyring backup 1` and `2`"},
		"join token":                               {fmt.Sprint(token[0]), fmt.Sprint(token[0])},
	} {
		if row := rowOf(t, "docs/formats.md", first); row[1] != want[0] || row[2] != want[1] {
			t.Errorf("%s: %q, want %q", first, row[1:3], want)
		}
	}
	if one := (&nks.File{}).AAD()[0]; one != 1 {
		t.Errorf("the AAD is of version %d", one)
	}
	for version := 1; version <= peer.Version; version++ {
		if link := fmt.Sprintf("[%d](../internal/peer/testdata/v%d)", version, version); !strings.Contains(keyringtest.Pages(t)["docs/formats.md"], link) {
			t.Errorf("no golden messages of version %d", version)
		}
	}
}

// label is how the library's labels are spelled, and where formats.md has them.
var label = regexp.MustCompile(`keyring v\d [a-z ]*[a-z]`)

// TestFormatsPageHasEveryLabel that a key follows from or an AAD begins with, and no other.
func TestFormatsPageHasEveryLabel(t *testing.T) {
	root, code := keyringtest.Root(t), []string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, is := n.(*ast.BasicLit); is && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil && label.FindString(text) == text && text != "" {
					code = append(code, text)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	listed := firstCells(t, "docs/formats.md", "Keys and labels")
	slices.Sort(code)
	slices.Sort(listed)
	if code = slices.Compact(code); !slices.Equal(code, listed) || len(code) < 10 {
		t.Errorf("the code has the labels\n%q\nand formats.md\n%q", code, listed)
	}
}

// TestFormatsPageHasTheProtocols: those of ALPN, of gRPC and the mark in raft's log.
func TestFormatsPageHasTheProtocols(t *testing.T) {
	service, err := os.ReadFile(filepath.Join(keyringtest.Root(t), "grpc/service.go"))
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`const ServiceName = "(.+)"`).FindSubmatch(service)
	if name == nil {
		t.Fatal("the module grpc has no name of its service")
	}
	for _, want := range []string{peer.ALPNRaft, peer.ALPNPeer, string(name[1]), keyringtest.Extensions, meta.SnapshotMagic} {
		if !strings.Contains(keyringtest.Pages(t)["docs/formats.md"], "`"+want+"`") {
			t.Errorf("formats.md does not have %s", want)
		}
	}
}

// figuresOfFormats are those of formats.md.
func figuresOfFormats(t *testing.T) []figure {
	const page = "docs/formats.md"
	return []figure{
		{page, fmt.Sprintf("has %d bytes more than its plaintext", seal.Overhead)},
		{page, fmt.Sprintf("without its first %d bytes", constantOf(t, "internal/seal", "idLen")+1)},
		{page, fmt.Sprintf("JSON of at most %s, with exactly one spelling", sizeText(nks.MaxFile))},
		{page, fmt.Sprintf("has 1 to %d wrapped copies", constantOf(t, "internal/nks", "maxWrapped"))},
		{page, fmt.Sprintf("canonical JSON of the commands, at most %s", sizeText(keyring.MaxCommand))},
		{page, fmt.Sprintf("canonical JSON of at most %s; and then the host's", sizeText(constantOf(t, "internal/meta", "maxSection")))},
		{page, fmt.Sprintf("`keyring-snapshot`, %d bytes", len(meta.SnapshotMagic))},
		{page, fmt.Sprintf("1 to 1,%03d bytes, a record at most %d parts and %s", records.MaxName-1000, records.MaxParts, sizeText(records.MaxBytes))},
		{page, fmt.Sprintf("JSON of at most %s, with the version first", sizeText(peer.MaxMessage))},
		{page, fmt.Sprintf("answer has at most %d keys", peer.MaxFetch)},
		{page, fmt.Sprintf("compact JWS of at most %s", sizeText(jwt.MaxToken))},
		{page, fmt.Sprintf("`RS256` with %d bits", constantOf(t, "internal/jwt", "rsaBits"))},
	}
}

func TestFiguresOfFormats(t *testing.T) { checkFigures(t, figuresOfFormats(t)) }
