package api

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler"
)

func TestGrant(t *testing.T) {
	web := compiler.LabelGrant{Name: "web", Users: []string{"alice"}, Labels: map[string][]string{"app": {"web", "db"}, "env": {"*"}}}
	ops := compiler.LabelGrant{Name: "ops", Groups: []string{"ops"}, Labels: map[string][]string{"app": {"cron"}}, Require: compiler.Labels{"team": "ops"}}
	free := compiler.LabelGrant{Name: "free", Groups: []string{"100"}, Labels: map[string][]string{"tier": {"1"}}, Require: compiler.Labels{"team": "free"}}
	grants := []compiler.LabelGrant{web, ops, free}
	alice := caller{uid: 1000, user: "alice"}
	aliceOps := caller{uid: 1000, user: "alice", groups: []string{"27", "ops"}}
	tests := []struct {
		name  string
		who   caller
		asked compiler.Labels
		want  compiler.Labels
		err   string
	}{
		{"root", caller{uid: 0, user: "root"}, compiler.Labels{"any": "thing"}, compiler.Labels{"any": "thing"}, ""},
		{"granted", alice, compiler.Labels{"app": "db", "env": "x"}, compiler.Labels{"app": "db", "env": "x"}, ""},
		{"a part of it", alice, compiler.Labels{"env": "x"}, compiler.Labels{"env": "x"}, ""},
		{"by group, required is added", caller{uid: 7, groups: []string{"ops"}}, compiler.Labels{"app": "cron"}, compiler.Labels{"app": "cron", "team": "ops"}, ""},
		{"required and given", caller{uid: 7, groups: []string{"ops"}}, compiler.Labels{"app": "cron", "team": "ops"}, compiler.Labels{"app": "cron", "team": "ops"}, ""},
		{"by gid", caller{uid: 7, groups: []string{"100"}}, compiler.Labels{"tier": "1"}, compiler.Labels{"tier": "1", "team": "free"}, ""},
		{"required of all grants", aliceOps, compiler.Labels{"app": "web"}, compiler.Labels{"app": "web", "team": "ops"}, ""},
		{"halves of two grants", aliceOps, compiler.Labels{"app": "cron", "env": "x"}, nil, "app=cron,env=x"},
		{"grants against each other", caller{uid: 7, groups: []string{"ops", "100"}}, compiler.Labels{"tier": "1"}, nil, "team=ops and team=free"},
		{"a name like a number", caller{uid: 7, user: "1000"}, compiler.Labels{"app": "web"}, nil, "No LabelGrant"},
		{"nobody", caller{uid: 7}, compiler.Labels{"app": "web"}, nil, "No LabelGrant"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := grant(grants, tt.who, tt.asked)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v; want %q", err, tt.err)
			}
		})
	}
}
